"""Every `auto` decided before anything is computed.

Pure decisions from the config and the index: windows, patches, folds, memory, items of work.

- `plan`: the plan of a run
- `named_cases`: which cases `cases:` names
- `folds`: which cases are judged together
- `capacity`: how large a network is, and its patches
- `network_plan`: which network, what it trains on, how windows are laid
- `nnunet_folder`: voters from a results folder of nnU-Net
- `spacing`: at which spacing networks see the archive
- `tiles`: which tile computes least
- `worker_memory`: how much memory a worker takes
- `items`: the rows that are scheduled
"""

DOOR = (
    "items",
    "named_cases",
    "network_plan",
    "nnunet_folder",
    "plan",
    "spacing",
    "worker_memory",
)
"""Modules that other rooms may import."""
