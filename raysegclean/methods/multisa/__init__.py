"""multisa."""
