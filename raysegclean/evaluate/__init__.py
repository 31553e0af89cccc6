"""Measures of a label against another.

Figures for people who know the truth; no decision reads them.

- `metrics`: Dice, surface distances, what a cleaning removed and harmed
- `reference`: all measures of one label against a reference at once
- `score`: scores of a label over an archive
"""

DOOR = (
    "metrics",
    "score",
)
"""Modules that other rooms may import."""
