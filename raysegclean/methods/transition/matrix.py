"""How often given labels are wrong, from the labels of a voxel's nearest neighbours in other cases.

If a voxel and its two nearest neighbours in feature space share their true class, and if their
given labels are independent given it, then the counts of single labels, pairs and triples determine
the transition matrix T[i, j] = P(given j | true i) and the prior (higher-order consensus: Zhu, Song
and Liu, ICML 2021). Features are weighted first by how much they tell about the label (f-mutual
information: Zhu, Wang and Liu, ICML 2022).

In segmentation two things must differ from the papers. Neighbours come from three different cases,
because the noise of neighbouring voxels is the same stroke of the same hand, and copies look like
agreement. And T is estimated per band of depth, because labels go wrong at outlines.

Not guaranteed: that voxels near an outline share a class with their neighbours; where features
cannot tell, T reads the ambiguity of the image as noise of the label. Where samples are few, T is
the identity, which changes nothing.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from raysegclean.evidence.second_pass import Answer, PredictedBlock
from raysegclean.methods.transition.reservoir import BAND_EDGES_MM, band_halo_vox, depth_bands
from raysegclean.voxels.geometry import Index3
from raysegclean.voxels.signed_distance import Spacing

__all__ = ["Estimate", "PosteriorReviser", "Samples", "estimate"]

Matrix = NDArray[np.float64]

ROUNDS, ROUND_ROWS = 5, 5_000
MIN_ROWS = 100
"""Voxels of a class in a band below which its row of T is that of the identity."""
MAX_JOINT_CLASSES = 6
_PARTNERS = 4
_DIGITS = 4
_BINS, _TAIL = 64, 0.5
_STEPS, _RATE = 1500, 0.1
_CHUNK = 1024


@dataclass(frozen=True)
class Samples:
    """Sampled voxels of several cases; rows (n,) each, features (n, F)."""

    features: NDArray[np.float32]
    given: NDArray[np.int64]
    band: NDArray[np.int64]
    case: NDArray[np.int64]
    fold: NDArray[np.int64]
    """Which networks gave the features: those of different folds do not compare."""

    @classmethod
    def of(cls, answers: Mapping[str, Answer], folds: Mapping[str, int]) -> "Samples":
        """Return the answers of `FeatureLook`, in the order of case ids."""
        cases = sorted(answers)
        sizes = [len(answers[case]["given"]) for case in cases]

        def rows(name: str) -> NDArray[Any]:
            return np.concatenate([answers[case][name] for case in cases])

        return cls(
            features=rows("features").astype(np.float32),
            given=rows("given").astype(np.int64),
            band=rows("band").astype(np.int64),
            case=np.repeat(np.arange(len(cases)), sizes),
            fold=np.repeat([folds[case] for case in cases], sizes),
        )

    def where(self, chosen: NDArray[Any]) -> "Samples":
        """Return some of the rows."""
        return Samples(*(getattr(self, name)[chosen] for name in self.__dataclass_fields__))


@dataclass(frozen=True)
class Consensus:
    """Rates of labels (C,), pairs (C, C) and triples (C, C, C); each sums to 1."""

    single: Matrix
    pair: Matrix
    triple: Matrix

    @classmethod
    def of(cls, triples: NDArray[np.int64], classes: int) -> "Consensus":
        """Count triples (n, 3) of given labels: a voxel's, and those of its two neighbours."""
        flat = np.ravel_multi_index(tuple(triples.T), (classes,) * 3)
        counts = np.bincount(flat, minlength=classes**3).reshape((classes,) * 3)
        rates = counts / max(len(triples), 1)
        return cls(rates.sum(axis=(1, 2)), rates.sum(axis=2), rates)


@dataclass(frozen=True)
class Estimate:
    """What was found, per band."""

    transition: Matrix
    """(B, C, C): P(given j | true i), to four digits."""
    rows: NDArray[np.int64]
    """(B, C): voxels of each given class behind it."""

    @property
    def known(self) -> frozenset[int]:
        """The foreground classes whose labels T says to be wrong at times, in some band."""
        off = self.transition != np.eye(self.transition.shape[1])
        return frozenset(int(c) for c in np.flatnonzero((off.any(1) | off.any(2)).any(0)) if c)


def feature_weights(
    features: NDArray[np.float32], given: NDArray[np.int64], divergence: str = "tv"
) -> NDArray[np.float32]:
    """Return a weight in [0, 1] per feature: its f-mutual information with the given label.

    Joint P and product of marginals Q over 64 bins between the 0.5th and 99.5th percentile and the
    classes. `tv`: sum |P - Q| / 2; `kl`: sum P log(P / Q). The least informative feature weighs
    (nearly) nothing, the most informative one 1.
    """
    information = []
    for column in features.T:
        low, high = np.percentile(column, [_TAIL, 100 - _TAIL])
        scaled = (column - low) / max(high - low, 1e-12) * _BINS
        place = np.clip(scaled, 0, _BINS - 1).astype(np.int64)
        joint = np.zeros((_BINS, int(given.max()) + 1))
        np.add.at(joint, (place, given), 1 / len(given))
        product = joint.sum(axis=1, keepdims=True) * joint.sum(axis=0, keepdims=True)
        if divergence == "tv":
            information.append(np.abs(joint - product).sum() / 2)
        else:
            ratio = np.divide(joint, product, out=np.ones_like(joint), where=joint > 0)
            information.append((joint * np.log(ratio)).sum())
    shifted = np.array(information) - min(information) + 1e-8
    return np.asarray(shifted / shifted.max(), np.float32)


def neighbour_labels(samples: Samples) -> NDArray[np.int64]:
    """Return triples (m, 3): given labels of voxels and of their two nearest neighbours by cosine.

    All three are of different cases and of one fold; voxels without such neighbours are left out.
    """
    found = []
    for fold in np.unique(samples.fold):
        mine = samples.where(samples.fold == fold)
        if len(np.unique(mine.case)) >= 3:
            found.append(_triples(mine))
    return np.concatenate(found) if found else np.empty((0, 3), np.int64)


def _triples(samples: Samples) -> NDArray[np.int64]:
    length = np.linalg.norm(samples.features, axis=1, keepdims=True)
    unit = samples.features / np.maximum(length, 1e-12)
    triples = []
    for start in range(0, len(unit), _CHUNK):
        part = slice(start, start + _CHUNK)
        near = unit[part] @ unit.T
        near[samples.case[part, None] == samples.case] = -np.inf
        first = near.argmax(axis=1)
        near[samples.case[first][:, None] == samples.case] = -np.inf
        second = near.argmax(axis=1)
        given = samples.given
        triples.append(np.stack([given[part], given[first], given[second]], axis=1))
    return np.concatenate(triples)


def consensus(samples: Samples, divergence: str) -> NDArray[np.int64]:
    """Return the triples of several rounds, each over a random part of the rows of one band."""
    found = []
    for number in range(ROUNDS):
        rng = np.random.default_rng([0, number])
        size = min(ROUND_ROWS, int(0.9 * len(samples.given)))
        part = samples.where(np.sort(rng.permutation(len(samples.given))[:size]))
        weighted = np.empty_like(part.features)
        for fold in np.unique(part.fold):
            mine = part.fold == fold
            weight = feature_weights(part.features[mine], part.given[mine], divergence)
            weighted[mine] = part.features[mine] * weight
        found.append(
            neighbour_labels(Samples(weighted, part.given, part.band, part.case, part.fold))
        )
    return np.concatenate(found)


def solve(counts: Consensus) -> tuple[Matrix, Matrix]:
    """Return the prior (C,) and T (C, C) whose single, pair and triple rates come nearest.

    Minimises the three norms of the differences over T = row softmax(A), p = softmax(B), from
    A = 5 I - 1, with Adam (1500 steps, rate .1), plus the square by which a diagonal element is
    not the largest of its row; the best step counts.
    """
    targets = [torch.from_numpy(rates) for rates in (counts.single, counts.pair, counts.triple)]
    classes = len(counts.single)
    a = (5 * torch.eye(classes, dtype=torch.float64) - 1).requires_grad_()
    b = torch.zeros(classes, dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.Adam([a, b], lr=_RATE)
    best, prior, transition = float("inf"), b.detach(), a.detach()
    for _ in range(_STEPS):
        t, p = torch.softmax(a, dim=1), torch.softmax(b, dim=0)
        weighted = p[:, None] * t
        model = (
            weighted.sum(dim=0),
            torch.einsum("ij,ik->jk", weighted, t),
            torch.einsum("ij,ik,il->jkl", weighted, t, t),
        )
        pairs = zip(model, targets, strict=True)
        # The norm has no gradient where it is zero.
        loss = sum(((m - c).square().sum() + 1e-18).sqrt() for m, c in pairs)
        loss = loss + (t.max(dim=1).values - t.diagonal()).square().sum()
        if loss.item() < best:
            best, prior, transition = loss.item(), p.detach(), t.detach()
        optimiser.zero_grad()
        torch.autograd.backward(loss)
        optimiser.step()
    return prior.numpy(), transition.numpy()


def estimate(samples: Samples, *, classes: int, divergence: str = "tv") -> Estimate:
    """Return T per band; identity rows where a class has fewer than `MIN_ROWS` voxels.

    Up to six classes are solved together. Of more, each class is solved with background and the
    four classes that its neighbours are most often given, which is where its labels go.
    """
    bands = len(BAND_EDGES_MM) + 1
    transition = np.stack([np.eye(classes)] * bands)
    rows = np.zeros((bands, classes), np.int64)
    for band in range(bands):
        mine = samples.where(samples.band == band)
        rows[band] = np.bincount(mine.given, minlength=classes)
        present = np.flatnonzero(rows[band] >= MIN_ROWS)
        if len(present) < 2 or not len(mine.given):
            continue
        triples = consensus(mine, divergence)
        if len(present) <= MAX_JOINT_CLASSES:
            _solve_group(transition[band], triples, present, present)
        else:
            pair = Consensus.of(triples, classes).pair
            for channel in (int(c) for c in present if c):
                group = _group(pair[channel], channel, present)
                _solve_group(transition[band], triples, group, [channel])
            _complete_background(transition[band])
    return Estimate(np.round(transition, _DIGITS), rows)


def _group(partners: Matrix, channel: int, present: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the class, the four that its neighbours are most often given, and background."""
    others = [c for c in present if c not in (0, channel)]
    nearest = sorted(others, key=lambda c: (-partners[c], c))[:_PARTNERS]
    return np.array(sorted({channel, *nearest, *present[present == 0]}), np.int64)


def _solve_group(
    transition: Matrix,
    triples: NDArray[np.int64],
    group: NDArray[np.int64],
    wanted: Sequence[int] | NDArray[np.int64],
) -> None:
    """Fill the rows of `wanted`, and what background becomes them, from the triples of a group."""
    inside = triples[np.isin(triples, group).all(axis=1)]
    if len(inside) < MIN_ROWS:
        return
    _, solved = solve(Consensus.of(np.searchsorted(group, inside), len(group)))
    for channel in wanted:
        place = int(np.searchsorted(group, channel))
        transition[channel] = 0.0
        transition[channel, group] = solved[place]
        if len(wanted) == 1 and group[0] == 0 and channel:
            transition[0, channel] = solved[0, place]


def _complete_background(transition: Matrix) -> None:
    """Make the row of background sum to 1, after each class has told its own rate by itself.

    Background is not wrong more often than right: rates that sum to more than a half are scaled.
    """
    wrong = transition[0, 1:]
    wrong *= min(1.0, 0.5 / max(float(wrong.sum()), 1e-12))
    transition[0, 0] = 1.0 - wrong.sum()


@dataclass(frozen=True)
class PosteriorReviser:
    """Revision: the class i of largest p_i T[band][i, given]; ties keep the given label."""

    transition: tuple[tuple[tuple[float, ...], ...], ...]
    """T by band, true class, given class."""
    edges_mm: tuple[float, ...] = BAND_EDGES_MM

    @classmethod
    def of(cls, transition: Matrix) -> "PosteriorReviser":
        """Return the reviser for T (B, C, C)."""
        return cls(tuple(tuple(tuple(row) for row in band) for band in transition.tolist()))

    def halo_vox(self, spacing_mm: Spacing) -> Index3:
        """Return the halo of the bands."""
        return band_halo_vox(spacing_mm, self.edges_mm)

    def revise(
        self,
        block: PredictedBlock,
        values: Mapping[str, Any],  # noqa: ARG002
    ) -> NDArray[np.uint8]:
        """Return the most probable true class of every voxel of the core."""
        core = block.core.slices
        given = block.given_zyx[core]
        band = depth_bands(block.given_zyx, block.spacing_mm, self.edges_mm)[core]
        rates = np.array(self.transition, np.float32)
        prob = block.prob_czyx[(slice(None), *core)]
        best = given.copy()
        own = np.take_along_axis(prob, given[None].astype(np.int64), axis=0)[0]
        highest = own * rates[band, given, given]
        for channel in range(len(prob)):
            mine = prob[channel] * rates[band, channel, given]
            better = mine > highest
            best[better] = channel
            highest[better] = mine[better]
        return best
