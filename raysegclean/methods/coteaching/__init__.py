"""coteaching."""
