"""Check by fault injection that no invalid transition and no lost update occurs: `make proof`."""
