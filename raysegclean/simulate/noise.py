"""Label noise with a known truth, to measure what a cleaning gives back.

Each kind is a pure function of the label, a generator and the voxel size, for 2D (one slice) and
3D, any number of classes and any integer dtype, which is kept:

- `boundary`: a case is eroded or dilated by a random amount (Co-Seg Type I, Huang et al. 2021;
  "DE" of Spatial Correction, Yao et al. 2023);
- `bias`: the same over- or under-segmentation for every case (a stand-in for Co-Seg Type II);
- `markov`: outlines wander off, biased and rough (J1, J2 of Spatial Correction; `simulate.markov`);
- `polygon`: outlines become polygons of a few vertices (Redekop & Chernyavskiy 2021);
- `smooth`: outlines keep their lowest Fourier descriptors (same source);
- `interpolate`: some slices are drawn, those between are interpolated;
- `drop`, `cut`: structures are missing, or one end of the label;
- `leak`: a class floods what lies beside it;
- `shift`, `mirror`: the label is displaced or flipped, as by a wrong header;
- `swap`, `merge`: two classes are exchanged, or one has the name of its neighbour.

`drop`, `cut`, `swap` and `merge` may empty a class; the others do less to it instead. Labels of
another model or of another case are no function of the label: `simulate.noisy_archive` has them.
Real archives also contain errors that none of these resembles, so a method that does well here has
not yet shown that it does well there.
"""

import difflib
import hashlib
import inspect
from collections.abc import Callable, Mapping, Sequence
from math import isfinite
from typing import Any

import numpy as np

from raysegclean.errors import ConfigError
from raysegclean.simulate.contours import interpolate, polygon, smooth
from raysegclean.simulate.gross import cut, drop, leak, merge, mirror, shift, swap
from raysegclean.simulate.markov import markov
from raysegclean.simulate.outlines import VOXEL, bias, boundary
from raysegclean.voxels.boxes import IntLabel
from raysegclean.voxels.surface import Spacing

__all__ = ["NOISES", "case_rng", "corrupt"]


def corrupt(
    label_zyx: IntLabel,
    noise: str,
    rng: np.random.Generator,
    spacing_mm: Spacing = VOXEL,
    **params: Any,
) -> IntLabel:
    """Return a corrupted copy of a label; `noise` is a key of NOISES, `params` its parameters.

    Raises ConfigError for an unknown noise or parameter, or a value that makes no sense.
    """
    function = NOISES.get(noise)
    if function is None:
        raise ConfigError(f"Unknown noise {noise!r}{_nearest(noise, NOISES)}")
    known = dict(list(inspect.signature(function).parameters.items())[3:])
    for name, value in params.items():
        if name not in known:
            raise ConfigError(f"Noise {noise!r} has no parameter {name!r}{_nearest(name, known)}")
        _check_kind(f"{noise}.{name}", value, known[name].default)
    return function(label_zyx, rng, spacing_mm, **params)


def case_rng(seed: int, case: str) -> np.random.Generator:
    """Return the generator of one case, whatever other cases there are."""
    return np.random.default_rng([seed, *hashlib.sha256(case.encode()).digest()])


NOISES: Mapping[str, Callable[..., IntLabel]] = {
    noise.__name__: noise
    for noise in (
        *(boundary, bias, markov, polygon, smooth, interpolate),
        *(drop, cut, leak, shift, mirror, swap, merge),
    )
}
"""Every noise by name."""


def _nearest(name: str, known: Sequence[str] | Mapping[str, Any]) -> str:
    close = difflib.get_close_matches(name, list(known), n=1)
    hint = f"; did you mean {close[0]!r}?" if close else "."
    return f"{hint} Known: {', '.join(known)}."


def _check_kind(name: str, value: object, default: object) -> None:
    """Refuse a value of another kind than the default's, before it fails deep inside."""
    kinds = {float: (int, float), int: (int,), str: (str,), type(None): (int,)}[type(default)]
    if not isinstance(value, kinds) or isinstance(value, bool):
        raise ConfigError(f"{name} must be of type {kinds[-1].__name__}, got {value!r}.")
    if isinstance(value, float) and not isfinite(value):
        raise ConfigError(f"{name} must be a finite number, got {value}.")
