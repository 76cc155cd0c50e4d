"""The commands of `execution-core`, except `run`."""
