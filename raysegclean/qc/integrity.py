"""Integrity: what is wrong with labels, found without any network.

Two kinds of rules. Exact ones: the label's values against the archive's, geometry against the
affine, empty labels, slices that were skipped, cases that occur twice. And robust ones: what a case
has otherwise than the archive (`qc.features`), and pairs of classes in the wrong order. Nothing
is known here of anatomy; the archive itself says what is usual, so an error that most cases share
is not seen.
"""

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from raysegclean.evidence.robust import known_median, known_sd
from raysegclean.qc.features import ArchiveFacts, box_words, class_findings
from raysegclean.qc.findings import Finding, IntegrityParams, ranked
from raysegclean.qc.label_statistics import LabelStatistics
from raysegclean.qc.orientation import orientation, spacing_of_affine

__all__ = ["Examination", "Said", "examine"]

EMPTY_SCORE = 100.0
TWIN_SCORE = 20.0
"""Scores of findings that are not measured in standard deviations, on the same ladder."""

SHOWN = 3
"""So many findings are said of a class at most, the worst ones."""

ENDS = ("z low", "z high", "y low", "y high", "x low", "x high")
GEOMETRY_TOLERANCE = 0.01
SKIPPED_FLANK = 0.1
"""A gap is a skipped slice where the slices beside it have this share of the largest area."""
SKIPPED_EXTENT = 0.25
"""A gap of more than this share of the class's length is between two structures."""
ORDER_FLOOR_MM = 2.0


@dataclass(frozen=True)
class Said:
    """What is wrong with a class of a case, in words, and whether any of it is grave."""

    words: str
    grave: bool


@dataclass(frozen=True)
class Examination:
    """What the checks found."""

    findings: tuple[Finding, ...]
    """Worst first."""
    scores: Mapping[str, float]
    """Case -> how odd it is, all its oddities together; of cases without a finding too."""
    notes: tuple[str, ...] = ()
    """What could not be judged, and why."""

    def said(self, values: Sequence[int]) -> dict[str, dict[int, Said]]:
        """Return case -> channel -> what is wrong with that class.

        `values` are the label values by channel. What is about no class is said of all of them.
        """
        said: dict[str, dict[int, Said]] = {}
        for case, findings in self._by_case().items():
            for channel, value in enumerate(values):
                about = [f for f in findings if f.is_about(value)] if value else []
                if about:
                    words = "; ".join(f"{one.what} ({one.score:.1f})" for one in about[:SHOWN])
                    grave = any(one.grave for one in about)
                    said.setdefault(case, {})[channel] = Said(words, grave)
        return said

    def _by_case(self) -> dict[str, list[Finding]]:
        found: dict[str, list[Finding]] = defaultdict(list)
        for finding in self.findings:
            found[finding.case].append(finding)
        return found

    def worst_first(self) -> list[str]:
        """Return all cases: those with grave findings first, then by score, then by name."""
        grave = {finding.case for finding in self.findings if finding.grave}
        return sorted(self.scores, key=lambda c: (c not in grave, -self.scores[c], c))


def examine(
    cases: Sequence[LabelStatistics],
    params: IntegrityParams | None = None,
    declared: Collection[int] | None = None,
    names: Mapping[int, str] | None = None,
) -> Examination:
    """Return what is wrong or odd with the cases of an archive.

    `declared` are the label values that may occur; without them values of very few cases count as
    strays. `names` are what label values are called. The answer does not depend on the order of
    the cases.
    """
    params = params or IntegrityParams()
    archive = ArchiveFacts(tuple(sorted(cases, key=lambda case: case.case)), names or {})
    squares = np.zeros(len(cases))
    found = [
        *_empty(archive),
        *_missing(archive, params),
        *_strays(archive, params, declared),
        *_geometry(archive, params),
        *_skipped(archive, params),
        *_parts(archive, params),
        *_borders(archive, params),
        *_orders(archive, params),
        *_twins(archive),
    ]
    for value in archive.values:
        findings, scores = class_findings(archive, value, params)
        found += findings
        squares += scores
    scores_of = dict(zip(archive.names, np.sqrt(squares).tolist(), strict=True))
    for finding in found:
        scores_of[finding.case] = max(scores_of[finding.case], finding.score)
    return Examination(ranked(found), scores_of, tuple(_notes(archive, params)))


def _notes(archive: ArchiveFacts, params: IntegrityParams) -> Iterable[str]:
    few = [value for value in archive.values if archive.holders[value] < params.few_cases]
    if few:
        shown = ", ".join(map(archive.called, few[:10])) + (" and more" if len(few) > 10 else "")
        yield (
            f"fewer than {params.few_cases} cases have class {shown}: volume, place, pieces and "
            "intensities are not judged there"
        )
    if not archive.frame.anatomical:
        yield "not every case has an affine: places and orders are along the axes of the voxels"


def _empty(archive: ArchiveFacts) -> Iterable[Finding]:
    for case in archive.cases:
        if not case.classes:
            yield Finding(
                grave=True,
                score=EMPTY_SCORE,
                case=case.case,
                what="the label is empty",
                value="0 voxels",
                remedy="draw it or leave the case out",
            )


def _missing(archive: ArchiveFacts, params: IntegrityParams) -> Iterable[Finding]:
    """Classes that nearly all other cases have, unless the scan ends before they begin."""
    holders, drawn = archive.holders, [case for case in archive.cases if case.classes]
    for row, case in enumerate(archive.cases):
        for value in sorted(holders.keys() - case.classes.keys()) if case.classes else ():
            share = holders[value] / max(1, len(drawn) - 1)
            if share < params.usual_share or len(drawn) <= 2:
                continue
            expected_mm = archive.expected_mm(row, value)
            if np.isnan(expected_mm).any() or archive.frame.is_inside(case, expected_mm):
                yield Finding(
                    grave=share >= params.sure_share,
                    score=round(EMPTY_SCORE * share / 2, 1),
                    case=case.case,
                    label_value=value,
                    what=f"class {archive.called(value)} is missing",
                    value="0 voxels",
                    usual=f"{share:.0%} of the other cases have it",
                    remedy="is the structure outside the scan? Else draw it",
                )


def _strays(
    archive: ArchiveFacts, params: IntegrityParams, declared: Collection[int] | None
) -> Iterable[Finding]:
    holders, many = archive.holders, len(archive.cases)
    for value in archive.values:
        known = declared is None or value in declared
        rare = holders[value] <= max(1, params.stray_share * many)
        if known and (declared is not None or not rare or many < 2 * params.few_cases):
            continue
        usual = "not declared" if not known else f"{holders[value]} of {many} cases have it"
        for case in archive.cases:
            if value in case.classes:
                yield Finding(
                    grave=not known,
                    score=EMPTY_SCORE / 2 if not known else params.odd_sds,
                    case=case.case,
                    label_value=value,
                    what=f"value {archive.called(value)} is in this label",
                    where=box_words(case.classes[value]),
                    value=f"{case.classes[value].voxels} voxels",
                    usual=usual,
                    remedy="is it a stray value? Map it to a class or to 0",
                )


def _geometry(archive: ArchiveFacts, params: IntegrityParams) -> Iterable[Finding]:
    for case in archive.cases:
        spacing = spacing_of_affine(case.affine) if case.affine else None
        if spacing and not np.allclose(spacing, case.spacing_mm, rtol=GEOMETRY_TOLERANCE):
            yield Finding(
                grave=True,
                score=EMPTY_SCORE / 2,
                case=case.case,
                what="the affine's spacing is not the image's",
                value=_mm(spacing),
                usual=_mm(case.spacing_mm),
                remedy="which one is right? Ingest the case again with it",
            )
    codes = {case.case: orientation(case.affine) for case in archive.cases if case.affine}
    if len(codes) < params.few_cases:
        return
    counts = Counter(codes.values())
    usual = max(sorted(counts), key=counts.__getitem__)
    others = [case for case, code in codes.items() if code != usual]
    for name in others if len(others) <= (1 - params.sure_share) * len(codes) + 1 else ():
        yield Finding(
            score=2 * params.odd_sds,
            case=name,
            what="the affine turns the image another way than in the other cases",
            value=codes[name],
            usual=usual,
            remedy="does left look left? Correct the affine if it does not",
        )


def _mm(spacing_mm: Sequence[float]) -> str:
    return " x ".join(f"{edge:.4g}" for edge in spacing_mm) + " mm (z, y, x)"


def _skipped(archive: ArchiveFacts, params: IntegrityParams) -> Iterable[Finding]:
    """Slices without a class between slices that have much of it, where other cases have none."""
    gaps: dict[tuple[int, int], list[LabelStatistics]] = defaultdict(list)
    named = dict(zip(archive.names, archive.cases, strict=True))
    for value in archive.values:
        for name, facts in archive.shown(value).items():
            for gap in facts.gaps:
                if gap.flank >= SKIPPED_FLANK:
                    gaps[value, gap.axis].append(named[name])
    rare = {
        (value, axis): cases
        for (value, axis), cases in sorted(gaps.items())
        if len(cases) - 1 <= (1 - params.sure_share) * archive.holders[value]
    }
    axes = Counter((case.case, value) for (value, _), cases in rare.items() for case in cases)
    parts = {value: archive.usual_parts(value) for value, _ in rare}
    for (value, axis), cases in rare.items():
        held = archive.holders[value]
        usual = f"{len(cases)} of {held} cases have such a gap"
        for case in cases:
            alone = axes[case.case, value] == 1
            # Two organs of one class have room between them; a skipped slice makes a part more.
            between = parts[value] > 1 and case.classes[value].parts <= parts[value]
            skips = alone and not between
            called = archive.called(value)
            finding = _gap_finding(case, (value, axis), called, usual, params, may_skip=skips)
            yield replace(finding, grave=finding.grave and held >= params.few_cases)


def _gap_finding(
    case: LabelStatistics,
    place: tuple[int, int],
    called: str,
    usual: str,
    params: IntegrityParams,
    *,
    may_skip: bool,
) -> Finding:
    """Return what a gap is: slices that were skipped, or the space between two structures.

    `place` is class and axis, `called` what people call the class; `may_skip` says that nothing
    else speaks for a space.
    """
    value, axis = place
    facts = case.classes[value]
    gap = next(gap for gap in facts.gaps if gap.axis == axis)
    extent = facts.high_vox[axis] - facts.low_vox[axis]
    # Two nodules are apart along several axes, or far apart.
    skips = may_skip and gap.slices <= SKIPPED_EXTENT * extent
    said, remedy = (
        ("skips slices", "draw the slices that were left out")
        if skips
        else ("is in parts far apart", "is one of them another structure?")
    )
    return Finding(
        grave=skips,
        score=round(TWIN_SCORE * (1 + gap.flank), 1) if skips else params.odd_sds,
        case=case.case,
        label_value=value,
        what=f"class {called} {said}",
        where=f"{'zyx'[axis]} {gap.start} and on",
        value=f"{gap.slices} empty slices inside",
        usual=usual,
        remedy=remedy,
    )


def _parts(archive: ArchiveFacts, params: IntegrityParams) -> Iterable[Finding]:
    """Another number of large parts than nearly all other cases have: one kidney of two."""
    for value in archive.values:
        parts = {case: facts.parts for case, facts in archive.shown(value).items()}
        counts, usual = Counter(parts.values()), archive.usual_parts(value)
        others = {case for case, number in parts.items() if number != usual}
        few = len(parts) < params.few_cases
        if few or len(others) > (1 - params.sure_share) * len(parts) + 1:
            continue
        for case in archive.cases:
            if case.case in others:
                yield Finding(
                    score=1.5 * params.odd_sds,
                    case=case.case,
                    label_value=value,
                    what=f"class {archive.called(value)} is in another number of large parts",
                    where=box_words(case.classes[value]),
                    value=f"{parts[case.case]} parts",
                    usual=f"{usual} parts in {counts[usual]} of {len(parts)} cases",
                    remedy="is a part missing, or one too many?",
                )


def _borders(archive: ArchiveFacts, params: IntegrityParams) -> Iterable[Finding]:
    few = archive.cut.sum(axis=0)
    for column, value in enumerate(archive.values):
        held = archive.holders[value]
        for end, name in enumerate(ENDS):
            cut = int(few[column, end])
            if cut - 1 > (1 - params.sure_share) * held or held < params.few_cases:
                continue
            for row in np.flatnonzero(archive.cut[:, column, end]).tolist():
                case = archive.cases[row]
                yield Finding(
                    score=params.odd_sds,
                    case=case.case,
                    label_value=value,
                    what=f"class {archive.called(value)} is cut by the border of the image",
                    where=name,
                    value=f"{case.classes[value].ends[end]:.0%} of its largest cross section",
                    usual=f"{cut} of {held} cases reach that border",
                    remedy="does the scan end there, or is the label displaced?",
                )


def _twins(archive: ArchiveFacts) -> Iterable[Finding]:
    """Cases with the image of another, or with its label on another image."""
    images: dict[str, list[str]] = defaultdict(list)
    labels: dict[str, list[LabelStatistics]] = defaultdict(list)
    for case in archive.cases:
        images[case.image_key].append(case.case)
        if case.classes:
            labels[case.label_key].append(case)
    for names in images.values():
        for name in names[1:]:
            what = f"same shape, spacing and intensities as case {names[0]}"
            yield _twin(name, what, "if it is the same scan, keep one of the two", grave=False)
    for cases in labels.values():
        strangers = [case for case in cases if case.image_key != cases[0].image_key]
        # One label for most of an archive is meant so, as an atlas; two cases are no archive.
        if len(cases) == 2 or 2 * len(cases) <= len(archive.cases):
            for case in strangers:
                what = f"same label as case {cases[0].case}, on another image"
                yield _twin(case.case, what, "find out whose label it is", grave=True)


def _twin(case: str, what: str, remedy: str, *, grave: bool) -> Finding:
    return Finding(
        grave=grave,
        score=TWIN_SCORE,
        case=case,
        what=what,
        remedy=remedy,
    )


@dataclass(frozen=True)
class _Pair:
    """Two classes in the wrong order."""

    score: float
    first: int
    second: int
    apart_mm: float
    usual_mm: float


def _orders(archive: ArchiveFacts, params: IntegrityParams) -> Iterable[Finding]:
    """Pairs of classes in another order along an axis than nearly all cases: sides swapped.

    Per case and axis the clearest pair speaks, with the number of the others.
    """
    found: dict[tuple[int, int], list[_Pair]] = defaultdict(list)
    for first, value in enumerate(archive.values[:-1]):
        apart = archive.centre_mm[:, first + 1 :] - archive.centre_mm[:, first, None]
        held = np.isfinite(apart).sum(axis=0)
        above = (apart > 0).sum(axis=0)
        agree = np.maximum(above, held - above)
        rule = (held >= params.few_cases) & (agree >= params.sure_share * (held - 1))
        usual = known_median(apart, axis=0)
        sd = np.maximum(ORDER_FLOOR_MM, known_sd(apart, usual, axis=0))
        score = np.abs(apart - usual) / (sd * (1 + 2 / np.maximum(held, 1)))
        broken = rule & (apart * usual < 0) & (score >= params.odd_sds)
        for row, second, axis in np.argwhere(broken).tolist():
            pair = _Pair(
                score=float(score[row, second, axis]),
                first=value,
                second=archive.values[first + 1 + second],
                apart_mm=float(apart[row, second, axis]),
                usual_mm=float(usual[second, axis]),
            )
            found[row, axis].append(pair)
    for (row, axis), pairs in sorted(found.items()):
        yield _order_finding(archive, archive.cases[row], axis, pairs)


def _order_finding(
    archive: ArchiveFacts, case: LabelStatistics, axis: int, pairs: Sequence[_Pair]
) -> Finding:
    worst = max(pairs, key=lambda pair: (pair.score, -pair.first, -pair.second))
    words = archive.frame.words[axis]
    more = f" (and {len(pairs) - 1} more pairs)" if len(pairs) > 1 else ""
    side = words[worst.apart_mm > 0]
    return Finding(
        grave=True,
        score=round(worst.score, 1),
        case=case.case,
        label_value=worst.second,
        also=worst.first,
        what=f"class {archive.called(worst.second)} lies further {side} than class "
        f"{archive.called(worst.first)}, the wrong way round{more}",
        where=box_words(case.classes[worst.second]),
        value=f"{abs(worst.apart_mm):.3g} mm further {side}",
        usual=f"{abs(worst.usual_mm):.3g} mm further {words[worst.usual_mm > 0]}",
        remedy="are sides swapped, or is the affine mirrored?",
    )
