"""Labels that are wrong in a known way, and phantoms whose truth is known.

What is needed to measure a cleaning. Nothing of a real run imports it.

- `noise`: the noises, by name
- `contours`: outlines drawn again in a hurry
- `markov`: outlines that wander
- `phantom`: CT-like cases with a known truth, and archives of them
- `noisy_archive`: a copy of an archive with wrong labels
"""

DOOR = ("noise", "noisy_archive", "phantom")
"""Modules that other rooms may import."""
