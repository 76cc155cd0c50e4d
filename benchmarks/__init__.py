"""How fast is it, beside what else there is? `make bench`."""
