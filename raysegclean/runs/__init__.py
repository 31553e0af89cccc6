"""A run as its driver sees it, from the config to the published label.

`pipeline` reads top to bottom; every stage is a file: what is due, run it, collect the outcome.
Work on voxels is elsewhere.

- `pipeline`: the main flow
- `preflight`: what is checked before anything is computed
- `begin`: the plan is frozen, or taken from the run folder
- `session`: what the stages share
- `check`: what labels break of the archive's own rules
- `train`: train the networks, and the final one
- `propose`: run them over the archive, once
- `gather`: from records to evidence
- `learning`: which classes the networks have learnt
- `judge`: from evidence to a verdict
- `gross`: what is grossly wrong is looked at, and repaired where it is proved
- `second_pass`: second looks and revisions
- `correct`: the corrector takes over
- `blend`: outlines are blended
- `harm_guard`: what would do harm is held back
- `apply`: write and publish
- `tally`: what became of cases and classes, counted
- `search`: trials that end in a verdict
- `plan_report`: what a run would do
- `metrics`: how far it was and is, kept in the run folder
- `status`: how far it is
- `verify`: its output, proved
- `replay`: other numbers, tried on the scores that a run kept
- `rank`: its cases, the worst given label first
- `undo`: changes are taken back
"""

DOOR = (
    "begin",
    "pipeline",
    "plan_report",
    "preflight",
    "rank",
    "replay",
    "status",
    "undo",
    "verify",
)
"""Modules that other rooms may import."""
