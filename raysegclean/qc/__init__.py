"""Checks of labels and images without any network.

Statistics of labels, what is unusual about them, and `raysegclean check`. It judges and edits
nothing.

- `label_statistics`: what a label says of itself and of its image
- `collect`: those statistics of one case, from the archive
- `orientation`: which way is left, from affines
- `features`: what one case has otherwise than the archive
- `findings`: findings, and how unusual a value is
- `integrity`: all checks over an archive
- `check`: the verb: usable cases, findings, their order
"""

DOOR = (
    "check",
    "collect",
    "findings",
    "integrity",
    "label_statistics",
)
"""Modules that other rooms may import."""
