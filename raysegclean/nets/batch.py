"""One step's patches, as a network reads them."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

__all__ = ["Batch"]


@dataclass(frozen=True)
class Batch:
    """The same fixed shape at every step.

    image: (B, C, Z, Y, X) float32, normalised. label: (B, Z, Y, X) int64 channel indices, -100
    has no say. case: B case ids. uniform: B flags, True for samples drawn uniformly; None when
    all of them are. clean: patches of trusted cases with their trusted label, for hooks that need
    some (`needs_trusted`).
    """

    image: Tensor
    label: Tensor
    case: list[str]
    step: int
    uniform: list[bool] | None = None
    clean: "Batch | None" = None

    def to(self, device: torch.device | str) -> "Batch":
        """Return the batch with its tensors on `device`."""
        clean = None if self.clean is None else self.clean.to(device)
        image, label = self.image.to(device), self.label.to(device)
        return replace(self, image=image, label=label, clean=clean)

    @property
    def uniform_image(self) -> Tensor:
        """The uniformly drawn images; there may be none."""
        if self.uniform is None:
            return self.image
        return self.image[torch.tensor(self.uniform, device=self.image.device)]
