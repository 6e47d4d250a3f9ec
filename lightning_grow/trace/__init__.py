"""A module, run once, becomes a tape: every operator, its tensors, and what their axes stand for."""
