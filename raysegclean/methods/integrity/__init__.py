"""Cases that break the archive's own rules."""
