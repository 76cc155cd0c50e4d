"""The commands of `execution-core`, one module each."""
