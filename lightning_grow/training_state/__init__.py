"""Optimizers, moments, schedules and the warm-up, grown with the weights."""
