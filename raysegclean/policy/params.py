"""Every number by which the default policy decides, each with its range, unit and evidence.

Settable under `policy:` in the config. They decide about proposals that are there already: another
value applies the labels again, and neither trains nor predicts anew. What a number rests on is
part of it: `measured` on the cases named, a `source` in the literature, `seen` in runs while the
policy was developed (a fit, not a forecast), or `argued` from what it guards against.
"""

from typing import Any

from pydantic import BaseModel, ConfigDict, Field

__all__ = ["LEAST_SHIFT_VOX", "PolicyParams"]

LEAST_SHIFT_VOX = 0.5
"""Geometry: a boundary that moves by less than half a voxel of the finest axis moves no voxel."""

_MEASURED = "measured: 200 hippocampus cases, half of them eroded or dilated"


def _number(default: float, unit: str, evidence: str, **bounds: float) -> Any:
    """Return a field that is refused outside its bounds, in words that name them."""
    words = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}
    told = " and ".join(f"{words[name]} {bound:g}" for name, bound in bounds.items())
    about: dict[str, Any] = {"unit": unit, "evidence": evidence}
    limits: dict[str, Any] = dict(bounds)
    return Field(default, description=f"{unit}, {told}", json_schema_extra=about, **limits)


def _cases(default: int, evidence: str, least: int = 1) -> Any:
    return _number(default, "a number of cases", evidence, ge=least)


def _share(default: float, evidence: str) -> Any:
    return _number(default, "a share", evidence, gt=0, le=1)


def _probability(default: float, evidence: str) -> Any:
    return _number(default, "a probability", evidence, gt=0, le=1)


def _dice(default: float, evidence: str) -> Any:
    return _number(default, "a Dice coefficient", evidence, ge=0, le=1)


def _vox(default: float, evidence: str) -> Any:
    # Offsets are measured up to 5 voxels (`voxels.contour_offset`); none can lie beyond.
    return _number(default, "voxels of the finest axis", evidence, gt=0, le=5)


def _sds(default: float, evidence: str) -> Any:
    return _number(default, "standard deviations", evidence, ge=0)


def _factor(default: float, evidence: str) -> Any:
    return _number(default, "a factor", evidence, gt=0)


def _log(default: float, evidence: str) -> Any:
    return _number(default, "a difference of natural logarithms", evidence, ge=0)


class PolicyParams(BaseModel):
    """Every number that the policy uses."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    # What can be known of the archive at all.
    min_cases: int = _cases(8, "argued: fewer have no usual value", least=4)
    """Fewer comparable cases than this decide nothing."""
    min_trusted: int = _cases(8, "measured: 8 trusted cases bring most of what 100 do")
    """From this many trusted cases on their labels say where a right boundary lies."""
    right_dice: float = _dice(0.95, "argued: a right label")
    """Trusted cases below this Dice of given to trusted foreground count as wrong."""
    max_flagged: float = _share(0.6, "argued: with more wrong, the centre may be theirs")
    """When more than this share looks wrong, the archive's centre is not known: nothing is done."""
    min_agreement: float = _dice(0.72, "seen: the lung cells of docs/results.md")
    """Networks that agree less with half of the labels of a class (Dice) have not learnt it; they
    may ask for a person, but not edit."""
    min_lower_agreement: float = _dice(0.66, "seen: the lung cells of docs/results.md")
    """The same for a quarter of the labels: where many cases are a riddle to the networks, those
    that stand out are no better known than the others."""
    lower_quantile: float = _share(0.25, "argued: with min_lower_agreement")
    """Which of the labels that quarter is."""
    min_learnt_classes: float = _share(0.5, "argued: what stands out may be the networks' riddle")
    """Where no more than this share of the classes is learnt, no candidate is taken."""
    min_boundary_vox: int = _number(20, "boundary voxels", "argued: the error of a mean", ge=1)
    """Fewer boundary voxels than this measure no offset."""
    telling_share: float = _share(0.2, "argued: a fifth of the boundary moves the whole's scores")
    """A class with this share of a case's boundary tells something about its foreground."""

    # Labels that stay as given (`policy.kept`).
    doubt_share: float = _share(0.5, "measured: no clean label of benchmarks/evidence is below")
    """A label with which the networks agree by less than this share of what they agree with half of
    the labels (Dice) is in doubt ..."""
    doubt_misfit: float = _factor(3.0, "measured: clean labels of benchmarks/evidence reach 2.6")
    """... and so is one that they miss by so many times as much as half of the labels ..."""
    doubt_loss: float = _dice(0.1, "argued: where networks miss nothing, a small error is no doubt")
    """... unless their agreement with it is less than this below what it is with half of them."""

    odd_misfit: float = _factor(1.5, "measured: 6 of 100 clean labels of benchmarks/evidence")
    """A label that the checks find odd, and not grave, is in doubt where the networks miss so many
    times as much of it as of half of the labels."""

    # Folds: what networks differ by is not the labels'.
    min_fold_cases: int = _cases(20, "argued: a fold's centre is known to .2 sd then")
    """Folds of at least this size are compared, and what their networks differ by is undone."""
    min_fold_bias_vox: float = _vox(0.25, "argued: about the error of one offset")
    """A smaller difference between folds is not known well enough to be undone."""
    min_fold_bias_log: float = _log(0.5, "argued: below, folds differ by chance")
    """The same for rates of candidates and roughness."""

    # Outlines that were moved as a whole.
    offset_error_vox: float = _vox(0.2, "seen: offsets of clean cases are known to about that")
    """To how much the offset of a clean case is known: the kernel by which the archive's centre is
    found, and the least that its offsets are ever taken to spread."""
    offset_sds: float = _sds(2.5, _MEASURED)
    offset_near_vox: float = _vox(0.5, _MEASURED)
    """Flagged: off the mode by more than sds x the robust sd of those nearer than near, and by so
    much that `shift_gain` times it is half a voxel, below which a shift moves nothing."""
    min_effect: float = _number(0.7, "standard deviations", "argued: see below", ge=0)
    """An outline that was moved is moved everywhere: its mean offset must be at least this many
    times the offset's spread along it, or it is a place where label and network disagree."""
    class_strictness: float = _factor(1.5, "argued: one class has less boundary than all")
    """A class of its own is shifted from this many times its limit."""
    min_fit: float = _dice(0.7, "argued: about min_agreement")
    """A shifted class must agree with the networks at least so well (Dice) ..."""
    min_fit_gain: float = _number(0.02, "a gain in Dice", "argued: more than chance", ge=-1, le=1)
    """... and by so much better than before: an outline that was moved fits once it is moved
    back."""
    shift_gain: float = _share(0.8, _MEASURED)
    """How much of a measured offset is taken back."""
    max_shift_vox: float = _vox(3.0, "argued: offsets beyond are measured badly")
    """A larger offset is no shifted outline, but a missing or a wrong structure."""
    min_shifted: float = _number(0.05, "a share", "argued: see below", ge=0, le=1)
    """When a smaller share of the cases is off, that is no way of drawing but a few odd cases."""
    min_alone_cases: int = _cases(
        30, "measured: phantoms; of 20 cases 4 of 58 classes moved were right, of 30 1 of 80"
    )
    """In fewer cases no class is moved that the foreground does not agree with: one badly learnt
    class looks the same."""

    # Two ways of drawing (`policy.annotator_styles`).
    min_way_separation: float = _sds(3.5, "argued: heaps that hardly overlap")
    """Ashman's D from which two heaps of offsets are two ways of drawing."""
    min_way_share: float = _share(0.3, "argued: see below")
    """Share of the cases that each heap must hold; fewer are cases that are off."""
    min_way_misfit: float = _sds(0.75, "seen: right outlines .3, wrong ones mostly 1.5 and more")
    """How many sds the labels of one heap must fit the networks worse (log corruption, the median
    of the classes) to be the wrong one. Right outlines were seen to fit worse by 0.3, wrong ones
    that wander mostly by 1.5 and more."""
    way_misfits: float = _share(0.05, "argued: all but a few")
    """An outline that was moved from one way onto the other must fit the networks better than this
    share of the labels that were drawn in that way. It may fit worse than it did before: networks
    that learnt both ways may lie nearer to the wrong one."""
    way_posterior: float = _probability(0.9, "argued: a right outline is lost otherwise")
    """Probability from which a case was drawn in the wrong one of two ways."""
    way_class_part: float = _share(0.5, "argued: nearer to the foreground's offset than to none")
    """A class takes part in the foreground's way where it lies off by this share of it."""

    # Noisy groups (`policy.outlier_cases`, `policy.contour_roughness`).
    posterior: float = _probability(0.75, "argued: three to one")
    """Probability from which a case belongs to a noisy group."""
    odd_sds: float = _sds(4.0, "argued: not by chance in a thousand cases")
    """A case whose offset spreads along its outline by this many robust sds more than usual, in
    the archive and in its group, is one that the networks do not understand: it leaves the group.
    """
    min_bic_gain: float = _number(
        20.0, "a difference of BIC", "source: twice `very strong` of Kass & Raftery 1995", ge=0
    )
    """How much better two components must be than one: between 10 and 20 the groups were seen to
    hold clean cases that look like noisy ones."""
    min_group_cases: int = _cases(40, "argued: see below")
    """Fewer cases than this form no groups: two components are then found by chance too often."""
    max_groups: int = _number(4, "a number of groups", "argued: more are splinters", ge=1)
    """How many groups one class, or the foreground, may have."""
    max_shadow: float = _share(0.5, "argued: most of it")
    """A group that shifted cases hold more of than this share is their shadow."""
    min_separation: float = _sds(2.0, "source: Ashman's D of clear separation, Ashman et al. 1994")
    """Ashman's D from which two components count as two groups."""
    min_rough_separation: float = _sds(4.0, "seen: below, groups hold clean cases too")
    """Ashman's D from which rough outlines count as a group."""
    rough_posterior: float = _probability(0.95, "seen: a clean case had .92")
    """Probability from which a case belongs to it: such a group is known well or not at all."""
    min_roughness: float = _log(0.1, "seen: a bias of one voxel makes .05")
    """How much rougher they must be, as a difference of logs."""
    min_corruption: float = _sds(0.3, "argued: a small effect")
    """How many sds the group's log corruption score must lie above that of the others."""

    # What is taken from the networks, and what may not be lost.
    harm_weight: float = _factor(1.0, "a definition: a voxel is a voxel")
    """Voxels that must be repaired for each one that is harmed."""
    fill_confidence: float = _probability(0.5, "argued: more likely than all others together")
    """Confidence from which voxels of a structure that the label lacks are taken."""
    usual_quantile: float = _number(0.05, "a share", "argued: all but a few", ge=0, lt=0.5)
    """Usual are the sizes of a class between this quantile and one less it ..."""
    size_slack: float = _number(2.0, "a factor", "argued: sizes of organs vary by that", ge=1)
    """... and those so many times smaller and larger."""
    min_confidence: float = _probability(0.7, _MEASURED)
    """Confidence for replacing where the scores carry no counts of candidates."""
    least_confidence: float = _number(0.0, "a probability", "the user's choice", ge=0, le=1)
    """Where they do, no candidate of less confidence replaces a label."""
    min_left: float = _number(0.1, "a share", "argued: less is a class that vanishes", ge=0, lt=1)
    """Share of its voxels that a class keeps in number, or it is held for a person: thin structures
    have no voxel away from their outline, and would pass `relabel.max_change` to the last."""

    # Gross errors (`policy.gross`).
    suspect_sds: float = _sds(1.0, "argued: a look costs little")
    """A case is looked at as a whole where a class agrees with the networks by this many robust
    sds less than usual ..."""
    min_suspect_gap: float = _number(
        0.04, "a difference in Dice", "argued: less is no gross error", gt=0, le=1
    )
    """... and by so much at least; a blob that is taken or given must bring as much."""
    min_gross_gain: float = _number(
        0.15, "a gain in Dice", "seen: 60 hippocampus cases, right .09, wrong .36", gt=0, le=1
    )
    """By how much a label must agree better once an error of its whole is undone, or of a cut."""
    max_gross_lag: float = _number(
        0.1,
        "a difference in Dice",
        "seen: 5 right edits of 60 hippocampus cases .1 or less, 3 wrong ones .13 to .20",
        ge=0,
        le=1,
    )
    """It must then agree by no more than this less than usual."""
    min_gross_lead: float = _number(
        0.1, "a difference in Dice", "seen: 60 hippocampus cases, least lead .16", ge=0, le=1
    )
    """By how much the best error must lead all others of the whole label."""
    min_part_confidence: float = _probability(
        0.9, "seen: blobs that networks missed .88, blobs that were added .90 to .96"
    )
    """Mean confidence of the networks in a blob, or beyond a cut, from which it is theirs."""
    min_part_share: float = _share(0.1, "argued: smaller ones are found by chance")
    """Share of a class's voxels that a blob, or what lies beyond a cut, must have."""

    def with_confidence(self, least: float | None) -> "PolicyParams":
        """Return the same with a method's own least confidence, where it has one."""
        return self if least is None else self.model_copy(update={"least_confidence": least})
