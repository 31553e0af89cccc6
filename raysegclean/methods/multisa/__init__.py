"""Multi-SA: where classes are, from which are present."""
