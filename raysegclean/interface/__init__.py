"""What people call: the command line, its verbs, the demo.

Thin shells around the other rooms; results as plain values, rendered in one place.

- `cli`: the command line
- `commands`: plan, status, verify, undo
- `demo`: a run on embedded data
- `picture`: given, cleaned and true outlines
"""

DOOR = ("cli",)
"""Modules that other rooms may import."""
