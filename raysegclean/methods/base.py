"""What a method is: a frozen value that the engine runs.

`params` is a frozen dataclass of the method's settings, `voters` says which networks vote and how
they are trained, `policy` turns the evidence of the whole archive into edits, and the
rule (`policy.apply.apply_edits`) carries the edits out voxel by voxel. A user's own method is the
same value in a module outside the package, named in the config as `method: my_package:MY_METHOD`.
"""

from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from pydantic import ValidationError

from raysegclean.errors import ConfigError, RaysegcleanError, told
from raysegclean.evidence.case_scores import CaseScore
from raysegclean.evidence.proposals import Score
from raysegclean.evidence.second_pass import Answer, CaseQuery, Revision
from raysegclean.evidence.stats import CaseStats
from raysegclean.methods.params import refusal
from raysegclean.names import BUILT_IN, load
from raysegclean.nets.hooks import PLAIN_HOOK, HookSpec
from raysegclean.policy.decisions import CaseDecision
from raysegclean.policy.default import decide
from raysegclean.policy.params import PolicyParams
from raysegclean.policy.quality import Quality

__all__ = ["ArchiveEvidence", "Asking", "Method", "Verdict", "Voters", "load_method", "make_params"]


@dataclass(frozen=True)
class Voters:
    """Which networks vote on a case, and how they are trained."""

    members: int
    """Networks per fold."""
    hook: HookSpec = PLAIN_HOOK
    """What the method does while training; hooks that exchange lessons make the members peers."""
    network: str = ""
    """The network that the method brings; empty: the configured one."""
    passes: int = 0
    """Dropout passes per member; 0 switches dropout off."""
    views: tuple[str, ...] = ()
    """Test-time views of the image, beside the plain one (`nets.views`)."""
    needs_agreement: bool = False
    """Whether a voxel on which the voters disagree can be proposed."""
    score: Score = ""
    """A second quantity that is stored per voxel beside the candidates; empty: none."""
    labels: tuple[str, ...] = ()
    """Labels of the archive that vote in place of networks; then `members` is 0."""


@dataclass(frozen=True)
class ArchiveEvidence:
    """What the propose stage found: small, whatever the archive's size per case."""

    scores: Sequence[CaseScore]
    """The given label of every case against voters that did not train on it."""
    trusted: Sequence[CaseScore]
    """The same of the trusted label, for cases that have one."""
    totals: CaseStats
    """The stats of all cases together."""
    stats: Mapping[str, CaseStats] = field(default_factory=dict)
    """The stats of each case."""
    spacing_mm: Mapping[str, tuple[float, float, float]] = field(default_factory=dict)
    """Voxel size of each case, z y x."""
    reports: Mapping[int, Sequence[Mapping[str, Any]]] = field(default_factory=dict)
    """Fold -> what the hook of each of its networks reported (`nets.hooks.Hook.report`)."""
    classes: tuple[int, ...] = ()
    """Label values; the position is the channel."""
    policy: PolicyParams = field(default_factory=PolicyParams)
    """The numbers that the run decides by."""

    def judged(self, confidence: float | None = None) -> dict[str, CaseDecision]:
        """Return the decision of the default policy on every case.

        `confidence`: the least with which a candidate replaces a label, where a method sets it.
        """
        return decide(self.scores, self.policy.with_confidence(confidence), trusted=self.trusted)


@dataclass(frozen=True)
class Verdict:
    """What a policy decided."""

    decisions: Mapping[str, CaseDecision]
    """What is done per case and class, with the reason in words; a case that is missing stays as
    given."""
    chosen: Mapping[str, float] = field(default_factory=dict)
    """Thresholds that were solved from the evidence."""
    revision: Revision | None = None
    """A last look that writes a label; it is taken where the edits say so (`policy.edits.Revise`).
    """
    least_agreement: Mapping[int, float] = field(default_factory=dict)
    """Dice with the voters below which no right label of a class is, where that is known: a class
    that was changed and stays below is in doubt."""
    quality: Mapping[str, Mapping[int, Quality]] = field(default_factory=dict)
    """How good the given label of each case and class is, where that is known."""


Asking = Generator[CaseQuery, Mapping[str, Answer], Verdict]
"""A policy that needs a second look: it yields what it asks, and is sent the answers by case."""


@dataclass(frozen=True)
class Method:
    """One way of cleaning labels."""

    name: str
    params: type
    voters: Callable[[Any], Voters]
    policy: Callable[[ArchiveEvidence, Any], Verdict | Asking]
    retrains: Callable[[Any], bool] = lambda params: getattr(params, "retrain", False)
    """Whether the last stage trains a network on cleaned labels: as a setting `retrain` says."""
    corrects: Callable[[Any], bool] = lambda params: getattr(params, "rule", "") == "default"
    """Whether second passes follow, as under `rule: default`: blending of noisy groups, and the
    voxel corrector in flagged cases, given enough trusted ones."""
    needs_trusted: Callable[[Any], bool] | bool = False
    """Whether it cannot work without a trusted label; then a run without one is refused early."""
    binary_only: Callable[[Any], str] = lambda _: ""
    """What in the params has no answer for more than one class beside background, in words; then
    such a run is refused early."""
    needs_features: bool = False
    """Whether it looks at what the voters' last layer reads (`nets.voters.head_inputs`); then a
    network that shows nothing of it is refused early."""

    def wants_trusted(self, params: Any) -> bool:
        """Return whether a run with these params needs at least one trusted case."""
        return self.needs_trusted(params) if callable(self.needs_trusted) else self.needs_trusted


def load_method(name: str) -> Method:
    """Return a built-in method, or the one at an import path `package.module:NAME`.

    Raises ConfigError when there is none, naming what was tried.
    """
    try:
        found = load("method", name)
    except Exception as error:  # whatever a module of the user's may raise
        known = ", ".join(BUILT_IN["method"])
        raise ConfigError(
            f"method: {name!r} cannot be loaded ({told(error)}). Use one of {known}, "
            "or package.module:NAME of a Method that this Python can import."
        ) from error
    if not isinstance(found, Method):
        raise ConfigError(
            f"method: {name!r} is a {type(found).__name__}, expected a raysegclean Method value."
        )
    return found


def make_params(method: Method, values: Mapping[str, Any]) -> Any:
    """Return the method's params with `values` set; raise ConfigError for an unknown name."""
    known = [item.name for item in fields(method.params)]
    unknown = sorted(set(values) - set(known))
    if unknown:
        raise ConfigError(
            f"params: {', '.join(unknown)}: not a parameter of {method.name}. "
            f"It has {', '.join(known)}."
        )
    try:
        return method.params(**values)
    except RaysegcleanError:
        raise
    except ValidationError as error:
        raise refusal(error) from error
    except Exception as error:  # whatever the dataclass of a user's method may raise
        raise ConfigError(
            f"params: {method.name} refuses {dict(values)} ({told(error)})."
        ) from error
