"""The pure core: numpy and torch in, numpy and torch out. No Ray, no files, no network."""
