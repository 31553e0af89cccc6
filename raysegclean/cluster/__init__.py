"""The work of a run, and who does it: all that imports Ray, and what this process does without.

Thin wrappers: what is computed comes from `voxels`, `nets`, `evidence` and `policy`. A worker tells
the driver small records; what is durable it commits to the ledger first.

- `executor`: what the driver asks of whoever works
- `driver`: what the driver has to work with, and how it ends
- `local_executor`: all of it in this process, without Ray
- `connection`: getting on a cluster, or making one of this machine
- `local_ray`: the start of a Ray on this machine, tried again
- `passes`: one pass over the archive on Ray Data: items in, reports out
- `worker`: an item on a worker: load, compute, write, commit
- `attempts`: shards that kill their worker
- `predict`: reading windows, asking voters
- `propose`: the pass that runs networks
- `label_votes`: the same without networks
- `check`: what labels say of themselves, without networks
- `proposal_folder`: proposals in the run folder
- `second_pass`: looks and revisions on workers
- `gross`: looks at whole cases, for gross errors
- `apply`: new labels, shard by shard
- `train_groups`: groups of networks, each to its end
- `train_jobs`: what is trained, cut into jobs
- `train_loop`: the loop of one training process
- `ray_trainings`: trainings on Ray Train
- `train_worker`: the loop in a worker of Ray Train
- `patches`: training patches, cut from the archive
- `patch_feed`: patches in the order of steps, on Ray Data
- `agreement_sample`: the fixed patches on which agreement is measured
- `exchange`: peers and ranks in different processes
- `training_progress`: where a training is
- `search`: values that only training can tell
"""

DOOR = (
    "apply",
    "check",
    "connection",
    "driver",
    "executor",
    "gross",
    "label_votes",
    "predict",
    "propose",
    "search",
    "second_pass",
    "train_groups",
    "train_jobs",
    "train_loop",
    "training_progress",
)
"""Modules that other rooms may import."""
