"""For which classes a finding about one class speaks: pure functions of the scores.

A case may be noisy in one class and a good example of all others. In an archive of a hundred
classes nearly every case is odd in one of them, so that "the cases without any finding" are none.
Findings are therefore kept per key (a class, or the foreground). One about the foreground speaks
for every class; one about a class speaks for that class, and for the foreground where the class is
a good part of it.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from raysegclean.evidence.case_scores import FOREGROUND, CaseScore, classes_of, of_key
from raysegclean.evidence.robust import Values
from raysegclean.policy.contour_offsets import Flags
from raysegclean.policy.params import PolicyParams

__all__ = ["Speaking"]


@dataclass(frozen=True)
class Speaking:
    """How much of each case's boundary is that of each class."""

    shares: Mapping[int, Values]
    cases: int
    telling_share: float
    """From this share of the boundary on classes speak for the foreground."""

    @classmethod
    def of(cls, scores: Sequence[CaseScore], params: PolicyParams) -> "Speaking":
        """Measure the shares by the boundaries that the networks see."""
        classes = classes_of(scores)
        boundary = {c: np.array([s.boundary_vox for s in of_key(scores, c)]) for c in classes}
        whole = np.maximum(np.sum([np.zeros(len(scores)), *boundary.values()], axis=0), 1)
        shares = {c: np.asarray(mine / whole, np.float64) for c, mine in boundary.items()}
        return cls(shares, len(scores), params.telling_share)

    def all_about(self, found: Mapping[int, Flags]) -> dict[int, Flags]:
        """Return for every key the cases of which the findings, by key, say something about it."""
        whole = found.get(FOREGROUND, np.False_) | (self._together(found) >= self.telling_share)
        about = {FOREGROUND: np.asarray(whole, np.bool_)}
        for key in self.shares:
            parts = [found[one] for one in (FOREGROUND, key) if one in found]
            about[key] = np.any([np.zeros_like(whole), *parts], axis=0)
        return about

    def telling(self, classes: Iterable[int]) -> set[int]:
        """Return the classes, and the foreground where they are a good part of the archive's."""
        chosen = set(classes)
        share = sum(float(self.shares[key].mean()) for key in chosen)
        return chosen | ({FOREGROUND} if share >= self.telling_share else set())

    def _together(self, found: Mapping[int, Flags]) -> Values:
        """Return the share of each case's boundary that is of classes with a finding."""
        parts = [
            np.where(flags, self.shares[c], 0) for c, flags in found.items() if c != FOREGROUND
        ]
        return np.asarray(np.sum([np.zeros(self.cases), *parts], axis=0), np.float64)
