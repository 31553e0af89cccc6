"""reweight."""
