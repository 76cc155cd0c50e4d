"""`execution-core run`: a command as a tracked execution."""
