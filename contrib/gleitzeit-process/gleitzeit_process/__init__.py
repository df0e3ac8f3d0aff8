"""Python runners for Gleitzeit as child processes, for code you trust."""
