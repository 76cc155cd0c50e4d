"""`execution-core run`: run a command as a tracked execution."""
