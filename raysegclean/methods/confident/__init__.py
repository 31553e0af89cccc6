"""confident."""
