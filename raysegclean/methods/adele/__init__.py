"""adele."""
