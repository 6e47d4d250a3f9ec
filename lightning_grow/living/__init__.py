"""A module changed while it trains."""
