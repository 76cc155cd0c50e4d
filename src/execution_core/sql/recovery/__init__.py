"""What became of a write whose connection was lost."""
