"""One run over the tape on cells, operator by operator."""
