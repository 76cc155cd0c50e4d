"""Speed of execution-core compared with alternatives: `make bench`."""
