"""From stored intensities to what a network reads.

The normaliser is planned once from the index, frozen with the run, and applied to each window by
itself. It uses statistics of the whole image that the index already holds, never of the window,
so that a voxel has the same normalised value in every window.

CT numbers are absolute, so CT archives share one clip range, mean and deviation. MR intensities
are not, so each case is brought to its own mean 0 and deviation 1.

Guaranteed: finite float32 output, or an error that says why not.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from raysegclean.errors import ConfigError, InputError
from raysegclean.evidence.cases import CaseInfo, Intensity

__all__ = ["Normaliser", "plan_normaliser"]

_AIR_HU = -200.0
"""Only CT has values far below zero: air is -1000 HU, fat about -100."""


@dataclass(frozen=True)
class Normaliser:
    """How images are brought to a common scale.

    kind "ct": clip to [low, high] HU, subtract `mean`, divide by `std`. kind "case": subtract and
    divide by the mean and deviation of the case itself; low, high, mean and std are unused.
    """

    kind: Literal["ct", "case"]
    low: float = 0.0
    high: float = 0.0
    mean: float = 0.0
    std: float = 1.0

    def apply(self, image_czyx: NDArray[Any], intensity: Intensity) -> NDArray[np.float32]:
        """Return float32 of the same shape; `intensity` describes the whole image of the case.

        Raises InputError when the image holds NaN or infinities.
        """
        mean, std = self.mean, self.std
        if self.kind == "case":
            mean, std = intensity.mean, intensity.std
        scale = np.float32(1.0 / std if std > 0 else 1.0)
        out = image_czyx.astype(np.float32)
        # Checked before clipping, which would hide an infinity.
        if image_czyx.dtype.kind == "f" and not np.isfinite(out).all():
            raise InputError(
                f"image: {int((~np.isfinite(out)).sum())} voxels are NaN or infinite in a window "
                f"of shape {image_czyx.shape}; repair the source and ingest the case again"
            )
        if self.kind == "ct":
            np.clip(out, np.float32(self.low), np.float32(self.high), out=out)
        out -= np.float32(mean)
        out *= scale
        return out


def plan_normaliser(
    cases: Sequence[CaseInfo], wanted: Literal["auto", "ct", "case"] = "auto"
) -> Normaliser:
    """Return the normaliser for an archive: "ct" when any image reaches below -200, else "case".

    `wanted` other than "auto" decides that.

    For CT, the clip range is the mean over cases of the 0.5 and 99.5 percentiles, and mean and
    deviation are those of all voxels with every case weighing the same. Raises ConfigError for an
    empty archive.
    """
    if not cases:
        raise ConfigError("normaliser: the archive has no case; ingest at least one")
    values = [info.intensity for info in cases]
    if wanted == "auto":
        wanted = "case" if min(value.minimum for value in values) >= _AIR_HU else "ct"
    if wanted == "case":
        return Normaliser("case")
    mean = float(np.mean([value.mean for value in values]))
    square = float(np.mean([value.std**2 + value.mean**2 for value in values]))
    return Normaliser(
        "ct",
        low=float(np.mean([value.p005 for value in values])),
        high=float(np.mean([value.p995 for value in values])),
        mean=mean,
        std=max(square - mean**2, 0.0) ** 0.5,
    )
