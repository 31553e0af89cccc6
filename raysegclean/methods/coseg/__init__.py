"""coseg."""
