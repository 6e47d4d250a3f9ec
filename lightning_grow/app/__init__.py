"""The command line, its configuration, and pictures."""
