"""Labels that are wrong in a known way, and phantoms whose truth is known.

What is needed to measure a cleaning. Nothing of a real run imports it.

- `noise`: the noises, by name
- `outlines`: outlines that are wider or narrower
- `contours`: outlines drawn again in a hurry
- `markov`: outlines that wander
- `gross`: what is missing, elsewhere, or has the name of something else
- `mixture`: which cases are wrong, and how
- `fields`: smooth random fields, scanner noise
- `made_archive`: archives of cases that are made rather than scanned
- `phantom`: CT-like cases with a known truth, and archives of them
- `warped`: one labelled CT, warped into an archive of patients
- `noisy_archive`: a copy of an archive with wrong labels
"""

DOOR = ("mixture", "noise", "noisy_archive", "phantom", "warped")
"""Modules that other rooms may import."""
