"""Methods: one folder a paper, and what every method is (`base`).

A folder holds all that is the paper's: `method` (settings, voters, policy), `hook` (what happens
while networks learn), `network`, and its own mathematics. It composes what `nets`, `evidence` and
`policy` offer and has no loop, training or storage of its own. No folder imports another.

- `params`: types that carry the ranges of settings
- `base`: what a method is; everything outside meets methods through it
"""

DOOR = ("base", "combine.votes", "params")
"""Modules that other rooms may import."""
