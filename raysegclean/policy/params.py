"""Every number that the default policy uses."""

from dataclasses import dataclass

from raysegclean.errors import ConfigError

__all__ = ["PolicyParams"]


@dataclass(frozen=True)
class PolicyParams:
    """Every number that the policy uses; lengths in voxels of the finest axis."""

    min_cases: int = 8
    """Fewer comparable cases than this decide nothing."""
    min_trusted: int = 8
    """From this many trusted cases on their labels say where a right boundary lies."""
    max_flagged: float = 0.6
    """When more than this share looks wrong, the archive's centre is not known: nothing is done."""
    min_agreement: float = 0.72
    """Networks that agree less with half of the labels of a class (Dice) have not learnt it; they
    may ask for a person, but not edit."""
    min_lower_agreement: float = 0.66
    """The same for a quarter of the labels: where many cases are a riddle to the networks, those
    that stand out are no better known than the others."""
    min_boundary_vox: int = 20
    """Fewer boundary voxels than this measure no offset."""
    offset_floor_vox: float = 0.4
    offset_sds: float = 2.5
    min_fold_cases: int = 20
    """Folds of at least this size are compared, and what their networks differ by is undone."""
    min_fold_bias_vox: float = 0.25
    """A smaller difference between folds is not known well enough to be undone."""
    offset_near_vox: float = 0.5
    """Flagged: off the mode by more than max(floor, sds x robust sd of those nearer than near),
    and by so much that `shift_gain` times it is half a voxel, below which a shift moves nothing."""
    min_effect: float = 0.7
    """An outline that was moved is moved everywhere: its mean offset must be at least this many
    times the offset's spread along it, or it is a place where label and network disagree."""
    class_strictness: float = 1.5
    """A class of its own is shifted from this many times its limit."""
    min_fit: float = 0.7
    """A shifted class must agree with the networks at least so well (Dice) ..."""
    min_fit_gain: float = 0.02
    """... and by so much better than before: an outline that was moved fits once it is moved
    back."""
    shift_gain: float = 0.8
    max_shift_vox: float = 3.0
    """A larger offset is no shifted outline, but a missing or a wrong structure."""
    min_shifted: float = 0.05
    """When a smaller share of the cases is off, that is no way of drawing but a few odd cases."""
    min_way_separation: float = 3.5
    """Ashman's D from which two heaps of offsets are two ways of drawing
    (`policy.annotator_styles`)."""
    min_way_share: float = 0.3
    """Share of the cases that each heap must hold; fewer are cases that are off."""
    min_way_misfit: float = 0.75
    """How many sds the labels of one heap must fit the networks worse (log corruption, the median
    of the classes) to be the wrong one. Right outlines were seen to fit worse by 0.3, wrong ones
    that wander mostly by 1.5 and more."""
    way_misfits: float = 0.05
    """An outline that was moved from one way onto the other must fit the networks better than this
    share of the labels that were drawn in that way. It may fit worse than it did before: networks
    that learnt both ways may lie nearer to the wrong one."""
    way_posterior: float = 0.9
    """Probability from which a case was drawn in the wrong one of two ways."""
    posterior: float = 0.75
    """Probability from which a case belongs to a noisy group."""
    odd_sds: float = 4.0
    """A case whose offset spreads along its outline by this many robust sds more than usual, in
    the archive and in its group, is one that the networks do not understand: it leaves the group.
    """
    min_bic_gain: float = 20.0
    """How much better two components must be than one. Twice what is called very strong (Kass &
    Raftery 1995): between 10 and 20 the groups held clean cases that look like noisy ones."""
    min_group_cases: int = 40
    """Fewer cases than this form no groups: two components are then found by chance too often."""
    min_separation: float = 2.0
    """Ashman's D from which two components count as two groups."""
    min_rough_separation: float = 4.0
    """Ashman's D from which rough outlines count as a group: below, it holds clean cases too."""
    rough_posterior: float = 0.95
    """Probability from which a case belongs to it: such a group is known well or not at all."""
    min_roughness: float = 0.1
    """How much rougher they must be, as a difference of logs; a bias of one voxel makes 0.05."""
    min_corruption: float = 0.3
    """How many sds the group's log corruption score must lie above that of the others."""
    harm_weight: float = 1.0
    """Voxels that must be repaired for each one that is harmed."""
    fill_confidence: float = 0.5
    """Confidence from which voxels of a structure that the label lacks are taken."""
    min_confidence: float = 0.7
    """Confidence for replacing where the scores carry no counts of candidates."""
    least_confidence: float = 0.0
    """Where they do, no candidate of less confidence replaces a label."""

    def __post_init__(self) -> None:
        """Refuse values outside their range."""
        for name in (
            "max_flagged",
            "posterior",
            "way_posterior",
            "rough_posterior",
            "fill_confidence",
            "min_confidence",
        ):
            value = getattr(self, name)
            if not 0 < value <= 1:
                raise ConfigError(f"policy {name} must be in (0, 1], got {value}")
        if self.min_cases < 4:
            raise ConfigError(f"policy min_cases must be at least 4, got {self.min_cases}")
        if self.min_trusted < 1:
            raise ConfigError(f"policy min_trusted must be at least 1, got {self.min_trusted}")
