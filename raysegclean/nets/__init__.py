"""Networks: how they are built, fed, trained and asked.

torch, and no Ray, archive or policy. A paper's own hook or network lies in its folder under
`methods`.

- `unet`: the default network
- `networks`: which network a spec names, and what is asked of it
- `torchscript`: a finished network from a file
- `nnunet`: the networks of nnU-Net
- `dropout`: dropout as a function of names
- `receptive`: how far a network sees, measured
- `memory`: how much memory a window or a training step takes
- `numerics`: what fixes how numbers are computed
- `normalise`: from stored intensities to what a network reads
- `sampling`: which patch comes at which step
- `batch`: one step's patches
- `augment`: changes of patches that keep their labels true
- `losses`: losses, one value per sample
- `deep_supervision`: coarser levels learn as well
- `hooks`: what a method does while a network learns
- `relabel`: what hooks share that correct labels
- `scales`: an image at other sizes
- `schedule`: how long a network learns, and at which rate
- `agreement`: how far it agrees with labels that it does not learn from
- `place`: where a trainer runs, and who it talks to
- `trainer`: the training loop
- `weights`: a network as bytes
- `views`: test-time views
- `voters`: class probabilities of a window
- `inference`: windows with halos, whose answer is that of the whole volume
"""

DOOR = (
    "agreement",
    "augment",
    "batch",
    "dropout",
    "hooks",
    "inference",
    "losses",
    "memory",
    "networks",
    "nnunet",
    "normalise",
    "numerics",
    "place",
    "receptive",
    "relabel",
    "sampling",
    "scales",
    "schedule",
    "torchscript",
    "trainer",
    "unet",
    "views",
    "voters",
    "weights",
)
"""Modules that other rooms may import."""
