"""A plan and a state: the grown state."""
