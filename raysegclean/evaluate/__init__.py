"""Measures of a label against another.

Figures for people who know the truth; no decision reads them.

- `metrics`: Dice, surface distances, what a cleaning repaired and harmed
- `score`: scores of a label over an archive
"""

DOOR = ("metrics", "score")
"""Modules that other rooms may import."""
