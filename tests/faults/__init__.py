"""Tests under faults of the world: a store that stutters, processes that end."""
