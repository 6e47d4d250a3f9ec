"""Two tapes side by side: what of the target is what of the source."""
