"""Checkpoint files: read, written, and the module that wrote one built again."""
