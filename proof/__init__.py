"""Is it so, whoever races and whatever breaks? `make proof`."""
