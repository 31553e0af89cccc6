"""Several cleaned labels vote."""
