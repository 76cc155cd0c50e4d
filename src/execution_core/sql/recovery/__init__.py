"""Find out whether a write committed whose connection broke."""
