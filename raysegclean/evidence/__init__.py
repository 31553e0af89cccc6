"""What the networks say about given labels: per voxel, per block, per case.

Values and how they merge. Nothing here decides (`policy`), predicts (`nets`) or is stored.

- `cases`: what is known of a case without its voxels
- `voxel_evidence`: running sums of what the networks say of each voxel
- `proposals`: what is kept per voxel: candidate, confidence, score
- `stats`: counts of one block, which merge into those of a case, and its scores
- `case_scores`: the scores that a policy decides on, as rows of a table, too
- `robust`: what is usual among many cases of which some are wrong
- `records`: what a worker tells the driver of a shard, per stage
- `second_pass`: what a policy may ask of chosen cases, with probabilities in hand
"""

DOOR = (
    "case_scores",
    "cases",
    "proposals",
    "records",
    "robust",
    "second_pass",
    "stats",
    "voxel_evidence",
)
"""Modules that other rooms may import."""
