"""One file per stage of a run, seen from the driver: what is due, run it, collect the outcome.

The work on voxels is elsewhere (`core`, `dist`); here are plans, ledgers and small tables.
"""
