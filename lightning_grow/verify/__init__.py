"""Source and grown target side by side: the check that makes the promise."""
