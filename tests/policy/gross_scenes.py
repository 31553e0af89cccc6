"""Bodies with organs that lie and look otherwise on either side, and what networks make of them."""

import numpy as np
from scipy import ndimage

from raysegclean.evidence.case_scores import CaseScore, ClassScore

SHAPE = (24, 40, 48)
ORGANS = {1: ((9, 14, 12), (5, 8, 7)), 2: ((10, 14, 35), (4, 6, 9)), 3: ((15, 29, 22), (4, 5, 12))}
"""Class -> centre and semi-axes (z y x)."""


def body(seed: int) -> np.ndarray:
    """Return the true label: three ellipsoids, whose places and sizes vary from case to case."""
    rng, label = np.random.default_rng(seed), np.zeros(SHAPE, np.uint8)
    grid = np.indices(SHAPE)
    for value, (centre, axes) in ORGANS.items():
        middle = np.array(centre) + rng.uniform(-1, 1, 3)
        scale = np.array(axes) * rng.uniform(0.9, 1.1, 3)
        near = ((grid - middle[:, None, None, None]) / scale[:, None, None, None]) ** 2
        label[near.sum(axis=0) < 1] = value
    return label


def networks(truth: np.ndarray, seed: int, error_vox: float = 1.0) -> np.ndarray:
    """Return a prediction whose outlines stray from the truth by about `error_vox`."""
    rng = np.random.default_rng(seed)
    best, seen = np.zeros(SHAPE), np.zeros(SHAPE, np.uint8)
    for value in np.unique(truth[truth > 0]):
        mine = truth == value
        depth = ndimage.distance_transform_edt(mine) - ndimage.distance_transform_edt(~mine)
        wave = ndimage.gaussian_filter(rng.normal(0, 1, SHAPE), 3)
        depth += wave / wave.std() * error_vox
        seen[depth > best] = value
        best = np.maximum(best, depth)
    return seen


def score(case: str, given: np.ndarray, seen: np.ndarray, fold: int = 0) -> CaseScore:
    """Return what a policy is told of the label (classes 1 to 3)."""

    def of(mine: np.ndarray, theirs: np.ndarray, both: int) -> ClassScore:
        union = int((mine | theirs).sum())
        return ClassScore(0.0, 100, 1.0, union, int(mine.sum()), int(theirs.sum()), both)

    classes = {
        c: of(given == c, seen == c, int(((given == c) & (seen == c)).sum())) for c in ORGANS
    }
    whole = of(given > 0, seen > 0, int(((given == seen) & (given > 0)).sum()))
    return CaseScore(case, whole, classes, fold)
