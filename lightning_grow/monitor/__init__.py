"""What became of a growth: did the run drop, did it recover, do the new units work."""
