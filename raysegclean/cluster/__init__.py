"""All that imports Ray: the work of a run on workers, and how they are reached.

Thin wrappers: what is computed comes from `voxels`, `nets`, `evidence` and `policy`. A worker tells
the driver small records; what is durable it commits to the ledger first.

- `connection`: getting on a cluster, or making one of this machine
- `local_ray`: the start of a Ray on this machine, tried again
- `passes`: one pass over the archive: items in, reports out
- `worker`: an item on a worker: load, compute, write, commit
- `attempts`: shards that kill their worker
- `predict`: reading windows, asking voters
- `propose`: the pass that runs networks
- `label_votes`: the same without networks
- `proposal_folder`: proposals in the run folder
- `second_pass`: looks and revisions on workers
- `apply`: new labels, shard by shard
- `train_groups`: groups of networks, each to its end
- `train_jobs`: what is trained, cut into jobs
- `train_worker`: what runs inside a training worker
- `patch_feed`: patches in the order of steps
- `exchange`: peers and ranks in different processes
- `training_progress`: where a training is
- `search`: values that only training can tell
"""

DOOR = (
    "apply",
    "connection",
    "label_votes",
    "passes",
    "predict",
    "propose",
    "search",
    "second_pass",
    "train_groups",
    "train_jobs",
    "train_worker",
    "training_progress",
)
"""Modules that other rooms may import."""
