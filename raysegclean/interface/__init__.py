"""What people call: the command line, its verbs, the demo.

Thin shells around the other rooms. A verb is one function, for the command line and for Python;
what it returns is plain values, rendered in one place.

- `cli`: the command line: errors, signals, exit codes
- `verbs`: what every verb shares
- `archive_verbs`: ingest, check, export
- `run_verbs`: plan, clean, status, verify, replay, undo
- `measure_verbs`: demo, simulate, score
- `live`: progress, on a terminal or in a log
- `demo`: a run on embedded data
- `picture`: given, cleaned and true outlines
"""

DOOR = (
    "archive_verbs",
    "cli",
    "measure_verbs",
    "run_verbs",
)
"""Modules that other rooms may import."""
