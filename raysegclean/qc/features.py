"""Oddities: what one case has otherwise than the archive, class by class.

Volume, pieces, intensities, place in the image, place among the other classes, cut ends. Each is
judged against the archive's own robust distribution, where enough cases have the class.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from raysegclean.evidence.robust import Values, known_median
from raysegclean.qc.findings import Feature, Finding, IntegrityParams
from raysegclean.qc.label_statistics import ClassFacts, LabelStatistics
from raysegclean.qc.orientation import Frame

__all__ = ["ArchiveFacts", "box_words", "class_findings"]

_LOOK = "look at this structure first"
_CT_MINIMUM = -200.0
"""Only CT has values far below zero."""

ORDINARY_SDS = 1.2
"""Below this a value is no sign of anything, alone or together with others."""

_OF_THREE = 2 / 3
"""Weight of the worst of three axes, which is odd by chance more often than one number is."""

PARTIAL = 0.5
"""Share of the usual volume below which a class that reaches the border is known in part."""

FLAT = 0.3
"""Least share of the largest cross section that an end must have to count as cut."""


@dataclass(frozen=True)
class ArchiveFacts:
    """The facts of all usable cases, with what the checks derive from them once."""

    cases: tuple[LabelStatistics, ...]
    class_names: Mapping[int, str] = field(default_factory=dict)
    """What label values are called, where that is known; nothing but words depends on it."""

    def called(self, value: int) -> str:
        """Return a label value with its name, as people read it: `5 liver`, or `5`."""
        return f"{value} {self.class_names.get(value, '')}".strip()

    @cached_property
    def names(self) -> list[str]:
        """Case ids, in the order of every array here."""
        return [case.case for case in self.cases]

    @cached_property
    def frame(self) -> Frame:
        """The common axes."""
        return Frame(self.cases)

    @cached_property
    def values(self) -> tuple[int, ...]:
        """All label values, ascending, background left out."""
        return tuple(sorted({value for case in self.cases for value in case.classes}))

    @cached_property
    def holders(self) -> Mapping[int, int]:
        """Cases that have each label value."""
        return Counter(value for case in self.cases for value in case.classes)

    @cached_property
    def centre_mm(self) -> Values:
        """(cases, classes, 3): centres on the common axes, NaN where no class or a partial one."""
        return self._positions(self.frame.centre_mm)

    def expected_mm(self, row: int, value: int) -> Values:
        """Return where (3) a class should lie in a case, by its other classes; NaN if unknown.

        The median of what each of them says: its own centre, and the usual way from there.
        """
        ways = self.centre_mm[:, self.column[value], None, :] - self.centre_mm
        return known_median(self.centre_mm[row] + known_median(ways, axis=0), axis=0)

    @cached_property
    def place(self) -> Values:
        """(cases, classes, 3): centres as shares of the image, NaN as in `centre_mm`."""
        return self._positions(self.frame.place)

    @cached_property
    def is_ct(self) -> bool:
        """True where intensities are Hounsfield units, which cases share.

        Half of the cases must say so: an odd voxel in one of them is no CT.
        """
        minima = [case.intensity.minimum for case in self.cases]
        return bool(minima) and float(np.median(minima)) < _CT_MINIMUM

    def number(self, value: int, name: str) -> Values:
        """Return one number of `ClassFacts` per case, NaN where a case lacks the class."""
        return np.array(
            [
                getattr(case.classes[value], name) if value in case.classes else np.nan
                for case in self.cases
            ],
            np.float64,
        )

    def where(self, value: int) -> list[str]:
        """Return where the class is in each case, in words."""
        return [
            box_words(case.classes[value]) if value in case.classes else "" for case in self.cases
        ]

    @cached_property
    def cut(self) -> NDArray[np.bool_]:
        """(cases, classes, 6): whether a class reaches the border: z low, z high, y low, ..."""
        out = np.zeros((len(self.cases), len(self.values), 6), np.bool_)
        for row, case in enumerate(self.cases):
            for value, facts in case.classes.items():
                column = self.column[value]
                out[row, column, ::2] = np.equal(facts.low_vox, 0)
                out[row, column, 1::2] = np.equal(facts.high_vox, case.shape_zyx)
        return out

    @cached_property
    def partial(self) -> NDArray[np.bool_]:
        """(cases, classes): whether the scan ends within a class, and shows little of it.

        It reaches the border, with less than `PARTIAL` of the usual volume. Where the centre of
        such a rest lies, how it ends and in how many parts, depends on where the scan ends.
        """
        volumes = np.stack([self.volume_ml(value) for value in self.values], axis=1)
        return self.cut.any(axis=2) & (volumes < PARTIAL * known_median(volumes, axis=0))

    def shown(self, value: int) -> Mapping[str, ClassFacts]:
        """Return the facts of a class for each case that shows more than a rest of it."""
        column = self.column[value]
        return {
            case.case: case.classes[value]
            for case, partial in zip(self.cases, self.partial[:, column].tolist(), strict=True)
            if value in case.classes and not partial
        }

    def usual_parts(self, value: int) -> int:
        """Return how many large parts of a class most cases have, 0 where none shows it."""
        counts = Counter(facts.parts for facts in self.shown(value).values())
        return max(sorted(counts), key=counts.__getitem__, default=0)

    def whole(self, value: int, values: Values) -> Values:
        """Return values per case, NaN where the scan shows only a rest of the class."""
        return np.where(self.partial[:, self.column[value]], np.nan, values)

    def volume_ml(self, value: int) -> Values:
        """Return the volume of a class per case, NaN where a case lacks it."""
        voxel_ml = [float(np.prod(case.spacing_mm)) / 1000 for case in self.cases]
        return self.number(value, "voxels") * voxel_ml

    @cached_property
    def column(self) -> Mapping[int, int]:
        """Position of each label value in the arrays."""
        return {value: column for column, value in enumerate(self.values)}

    def _positions(self, of: Callable[[LabelStatistics, Values], Values]) -> Values:
        out = np.full((len(self.cases), len(self.values), 3), np.nan)
        for row, case in enumerate(self.cases):
            if case.classes:
                centres = np.array([facts.centre_vox for facts in case.classes.values()])
                out[row, [self.column[value] for value in case.classes]] = of(case, centres)
        out[self.partial] = np.nan
        return out


def class_findings(
    archive: ArchiveFacts, value: int, params: IntegrityParams
) -> tuple[list[Finding], Values]:
    """Return what is odd about one class, and how odd it is in each case.

    That is the sum of the squares of what exceeds `ORDINARY_SDS`, over all quantities.
    """
    found: list[Finding] = []
    squares = np.zeros(len(archive.cases))
    where = archive.where(value)
    rows = {case: row for row, case in enumerate(archive.names)}
    for group in _features(archive, value):
        scores = np.array([feature.scores(params.few_cases) for feature in group])
        squares += np.maximum(group[0].weight * scores.max(axis=0) - ORDINARY_SDS, 0) ** 2
        # Of one quantity along three axes, the axis that is furthest off speaks.
        speaks = scores.argmax(axis=0)
        for number, feature in enumerate(group):
            about = (value, archive.called(value))
            findings = feature.findings(archive.names, about, where, params)
            found += [f for f in findings if speaks[rows[f.case]] == number]
    return found, squares


def _features(archive: ArchiveFacts, value: int) -> Iterator[Sequence[Feature]]:
    yield [_volume(archive, value)]
    yield [_pieces(archive, value)]
    yield from ([feature] for feature in _intensities(archive, value))
    yield _places(archive, value)
    yield _among_others(archive, value)
    yield from ([feature] for feature in _ends(archive, value))


def _volume(archive: ArchiveFacts, value: int) -> Feature:
    return Feature(
        what="class {value} is {side} than usual",
        sides=("smaller", "larger"),
        unit="ml",
        values=archive.whole(value, archive.volume_ml(value)),
        remedy=_LOOK,
        floor=0.15,
        log=True,
        grave_effect=float(np.log(3)),
    )


def _pieces(archive: ArchiveFacts, value: int) -> Feature:
    return Feature(
        what="class {value} is in {side} pieces than usual",
        sides=("fewer", "more"),
        unit="pieces",
        values=archive.number(value, "components"),
        remedy="are there specks, or structures of another class?",
        floor=0.25,
        log=True,
        side=1,
    )


def _intensities(archive: ArchiveFacts, value: int) -> Iterator[Feature]:
    """Yield mean and spread inside, and edges under the outline; in HU where the archive is CT."""
    std = np.array([case.intensity.std for case in archive.cases]) if archive.is_ct else 1.0
    mean = np.array([case.intensity.mean for case in archive.cases]) if archive.is_ct else 0.0
    unit, floor, large = ("HU", 10.0, 150.0) if archive.is_ct else ("sd of the image", 0.1, 1.0)
    yield Feature(
        what="the image inside class {value} is {side} than usual",
        sides=("darker", "brighter"),
        unit=unit,
        values=archive.number(value, "grey") * std + mean,
        remedy="does the label belong to this image, and to this structure?",
        floor=floor,
        grave_effect=large,
    )
    yield Feature(
        what="the image inside class {value} is {side} mixed than usual",
        sides=("less", "more"),
        unit=unit,
        values=archive.number(value, "grey_sd") * std,
        remedy="does the outline hold other tissue too?",
        floor=0.15,
        log=True,
        side=1,
    )
    yield Feature(
        what="the outline of class {value} follows edges of the image {side} than usual",
        sides=("less", "more"),
        unit=unit,
        values=archive.number(value, "step") * std,
        remedy="is the label displaced, or drawn coarsely?",
        floor=0.1,
        log=True,
        side=-1,
    )


def _places(archive: ArchiveFacts, value: int) -> list[Feature]:
    column = archive.column[value]
    return [
        Feature(
            what="class {value} lies further {side} than usual in the image",
            sides=words,
            unit="of the image",
            values=archive.place[:, column, axis],
            remedy="does the label belong to this image?",
            floor=0.02,
            weight=_OF_THREE,
        )
        for axis, words in enumerate(archive.frame.words)
    ]


def _among_others(archive: ArchiveFacts, value: int) -> list[Feature]:
    """Return how far a class lies from where the other classes of its case say it should be.

    The median over the other classes of the difference to the usual offset: one class that is off
    itself moves only its own figure.
    """
    column = archive.column[value]
    offset = archive.centre_mm[:, column, None, :] - archive.centre_mm
    offset[:, column] = np.nan
    away = offset - known_median(offset, axis=0)
    shift = known_median(away, axis=1)
    floor = max(1.0, float(np.median([min(case.spacing_mm) for case in archive.cases])))
    return [
        Feature(
            what="class {value} lies further {side} than usual, seen from the other classes",
            sides=words,
            unit="mm",
            values=shift[:, axis],
            remedy="is it the right structure, on the right side?",
            floor=floor,
            weight=_OF_THREE,
            grave_effect=10.0,
        )
        for axis, words in enumerate(archive.frame.words)
    ]


def _ends(archive: ArchiveFacts, value: int) -> Iterator[Feature]:
    """Yield how flat the class is cut at each of its six ends, inside the image alone."""
    column = archive.column[value]
    for end in range(6):
        axis, at_high = divmod(end, 2)
        ratio = [
            np.nan if cut or value not in case.classes else case.classes[value].ends[end]
            for case, cut in zip(archive.cases, archive.cut[:, column, end], strict=True)
        ]
        yield Feature(
            what=f"class {{value}} ends {{side}} flat than usual, at its "
            f"{('low', 'high')[at_high]} {'zyx'[axis]} end",
            sides=("less", "more"),
            unit="of its largest cross section",
            values=archive.whole(value, np.array(ratio, np.float64)),
            remedy="was the annotation cut short?",
            floor=0.08,
            side=1,
            least=FLAT,
            weight=0.5,  # small structures end flat by chance
        )


def box_words(facts: ClassFacts) -> str:
    """Return where a class is, in voxels z, y, x."""
    spans = zip("zyx", facts.low_vox, facts.high_vox, strict=True)
    return ", ".join(f"{axis} {low}-{high - 1}" for axis, low, high in spans)
