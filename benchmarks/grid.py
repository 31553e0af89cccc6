"""What the scoreboard measures: data sets, scenarios and methods, as tables.

Nothing runs here, and nothing is read: a new noise, data set or method is one more line.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

__all__ = [
    "AIMS",
    "AS_PUBLISHED",
    "BASELINES",
    "DATA",
    "HELD_OUT",
    "METHODS",
    "NO_NETWORK",
    "PHANTOM",
    "PUBLISHED",
    "RANKING",
    "REVISION",
    "SCENARIOS",
    "TRAIN",
    "TRUSTED",
    "Data",
    "Entry",
    "Phantom",
    "Repeat",
    "Scenario",
    "is_default",
    "names",
    "owner",
]

Values = Mapping[str, Any]

REVISION = 1
"""Bumped by hand when a change of the package moves figures: older cells are measured again."""

TRAIN: Mapping[str, Values] = {
    "hippocampus": {"steps": 350, "batch": 2, "patch_zyx": [24, 32, 24]},
    "lung": {"steps": 400, "batch": 4, "patch_zyx": [8, 40, 40]},
    "phantom": {"steps": 400, "batch": 2, "patch_zyx": [24, 40, 40], "lr": 0.02},
    "crowd": {"steps": 2000, "batch": 8, "patch_zyx": [1, 48, 48], "flips": ["y", "x"]},
}
"""How the networks of each data set are trained."""


@dataclass(frozen=True)
class Phantom:
    """The archive of phantoms."""

    cases: int
    shape_zyx: tuple[int, int, int]
    spacing_mm: tuple[float, float, float]


PHANTOM = Phantom(40, (24, 64, 64), (3.0, 3.0, 3.0))


@dataclass(frozen=True)
class Scenario:
    """A way in which labels are wrong, and what is known about it.

    noise: of `simulate.noise`, "annotator" (a person's own outline), or empty for labels as they
    came. share: of the cases that get it. trusted: cases that also have the true label. archive:
    the scenario whose archive is used, where it is another's.
    """

    name: str
    noise: str
    share: float = 0.5
    params: Values = field(default_factory=dict)
    trusted: int = 0
    archive: str = ""
    methods: tuple[str, ...] = ()
    """Those that run; empty: all."""

    @property
    def ranks_only(self) -> bool:
        """Whether it asks no method to edit."""
        return bool(self.methods) and set(self.methods) <= set(RANKING)

    @property
    def place(self) -> str:
        """The name of the archive."""
        return self.archive or self.name


NOISE: Mapping[str, Values] = {
    "boundary": {"n_max": 1},
    "bias": {"amount": 1.0},
    "markov": {"steps": 12, "th2": 0.1},
    "polygon": {"vertices": 5},
    "smooth": {"descriptors": 2},
    "drop": {},
    "shift": {"length": 4.0},
    "swap": {},
}
"""Strengths that leave a Dice of .7 to .9 in a typical case; `drop`, `shift`, `swap` are gross."""
TRUSTED = 8
FEW = 0.05
RANKING = ("integrity", "multisa")
"""Methods that may rank cases instead of editing them."""
GROSS = ("drop", "shift", "swap")
SHARED = ("boundary", "bias", "markov", "polygon")
LEVELS = (0.1, 0.2, 0.3, 0.4, 0.5)
"""Co-Seg's noise levels."""
OUTLINES: Mapping[str, tuple[str, Values]] = {
    "polygon-3": ("polygon", {"vertices": 3}),
    "polygon-7": ("polygon", {"vertices": 7}),
    "smooth": ("smooth", {"descriptors": 2}),
}
"""Redekop's noises."""
REDEKOP = ("uncertainty-published", "uncertainty", "relabelling", "reweight")
SPATIAL = ("label shift", "spatial-shift", "spatial-published", "spatial")
TRUSTING = ("uncertainty", "reweight", *SPATIAL)
"""What is compared where some cases are trusted: the methods that learn from those."""
CO_SEG = ("coseg-published", "coseg")
TRAINED_AS_PUBLISHED = ("boundary", "polygon", "none")
"""Scenarios in which the papers' rules that train networks of their own run, on the phantom."""


def _scenarios() -> dict[str, Scenario]:
    found = [Scenario(noise, noise, params=params) for noise, params in NOISE.items()]
    found.append(Scenario("none", "", 0.0))
    found += [Scenario(f"{n}-all", n, 1.0, NOISE[n], TRUSTED, methods=TRUSTING) for n in SHARED]
    found.append(Scenario("bias-one", "bias", 0.5, NOISE["bias"], 1, methods=TRUSTING))
    found += [Scenario(f"{n}-few", n, FEW, NOISE[n], methods=RANKING) for n in GROSS]
    found.append(Scenario("crowd", "annotator", 1.0))
    found.append(Scenario("crowd-trusted", "annotator", 1.0, {}, TRUSTED, archive="crowd"))
    found += [
        Scenario(f"coseg-{level}", "boundary", level, {"n_max": 2}, methods=CO_SEG)
        for level in LEVELS
    ]
    found += [
        Scenario(f"{name}-all", noise, 1.0, params, TRUSTED, methods=REDEKOP)
        for name, (noise, params) in OUTLINES.items()
    ]
    found += [
        Scenario(f"markov-{th1}-all", "markov", 1.0, {**NOISE["markov"], "th1": th1}, TRUSTED,
                 methods=SPATIAL)
        for th1 in (0.8, 0.2)
    ]  # fmt: skip
    return {scenario.name: scenario for scenario in found}


SCENARIOS: Mapping[str, Scenario] = _scenarios()


@dataclass(frozen=True)
class Data:
    """One data set: which scenarios its part of the grid has, and its settings."""

    scenarios: tuple[str, ...]
    train: Values
    seeds: tuple[int, ...] = (1,)
    network: Values = field(default_factory=dict)
    patients: int | None = None
    """One case each of so many patients; None: all cases."""


ALL = tuple(f"{noise}-all" for noise in SHARED)
FEW_NAMES = tuple(f"{noise}-few" for noise in GROSS)
DATA: Mapping[str, Data] = {
    "phantom": Data(
        (*NOISE, "none", "bias-one", *ALL, *FEW_NAMES),
        TRAIN["phantom"],
        seeds=(1, 2),
        # With the default dropout they miss the kidneys in so few steps.
        network={"dropout": 0.05},
    ),
    "hippocampus": Data(
        ("boundary", "polygon", "bias", "markov", "drop", "none", "bias-one", *ALL, *FEW_NAMES),
        {**TRAIN["hippocampus"], "steps": 850},
    ),
    "lung": Data(("boundary", "polygon", "none"), TRAIN["lung"], patients=160),
    "crowd": Data(("crowd", "crowd-trusted"), TRAIN["crowd"], network={"dims": 2}),
}


@dataclass(frozen=True)
class Entry:
    """One line of the scoreboard.

    family: who trained the networks that vote: methods of one family share them, and its first
    entry trains them; "none" has no network. knows_share: the method is told the share of noisy
    cases (`alpha`). binary: it flips labels, and so has no answer for more than one class. votes:
    it votes over the labels of these lines.
    """

    method: str
    family: str
    params: Values = field(default_factory=dict)
    knows_share: bool = False
    needs_trusted: bool = False
    binary: bool = False
    votes: tuple[str, ...] = ()


AS_PUBLISHED = "-published"
PLAIN = "plain"
NO_NETWORK = "none"
METHODS: Mapping[str, Entry] = {
    "uncertainty": Entry("uncertainty", PLAIN, {"voters": "ensemble", "members": 2}),
    "dropout": Entry("uncertainty", PLAIN, {"voters": "dropout", "members": 1, "passes": 8}),
    "tta": Entry("uncertainty", PLAIN, {"voters": "tta", "members": 1}),
    "confident": Entry("confident", PLAIN),
    "transition": Entry("transition", PLAIN),
    "spatial": Entry("spatial", PLAIN, needs_trusted=True),
    "relabelling": Entry("uncertainty", "relabelling", {"members": 2, "relabel_from": "auto"}),
    "coseg": Entry("coseg", "coseg"),
    "coteaching": Entry("coteaching", "coteaching"),
    "cores": Entry("cores", "cores"),
    "adele": Entry("adele", "adele"),
    "reweight": Entry("reweight", "reweight", needs_trusted=True),
    "multisa": Entry("multisa", "multisa"),
    "integrity": Entry("integrity", NO_NETWORK),
    "combine": Entry("combine", NO_NETWORK, votes=("uncertainty", "coseg", "coteaching")),
    "coseg-published": Entry("coseg", "coseg-published", knows_share=True),
    "coteaching-published": Entry("coteaching", "coteaching-published", {"rule": "published"}),
    "uncertainty-published": Entry(
        "uncertainty",
        PLAIN,
        {"voters": "ensemble", "members": 2, "rule": "published"},
        binary=True,
    ),
    "confident-published": Entry("confident", PLAIN, {"rule": "cleanlab"}),
    "transition-published": Entry("transition", PLAIN, {"rule": "published"}),
    "forward-published": Entry(
        "transition", "forward-published", {"rule": "published", "loss": "forward"}
    ),
    "spatial-published": Entry("spatial", PLAIN, {"rule": "published"}, needs_trusted=True),
    "spatial-shift": Entry("spatial", NO_NETWORK, {"rule": "shift"}, needs_trusted=True),
    "cores-published": Entry("cores", "cores-published", {"rule": "published"}),
    "adele-published": Entry("adele", "adele", {"rule": "published"}),
}

BASELINES: Mapping[str, str] = {
    "nothing": "every label stays as given",
    "argmax": "every label becomes the mean prediction of the plain networks",
    "label shift": "every outline moves by its class's mean bias, measured on the trusted cases",
    "majority": "the majority of all seven annotators, which no method sees",
}
"""Lines that need no method of this package."""

_LEAST_E: Values = {
    "boundary": 0.6,
    "polygon": 0.3,
    "bias": 0.4,
    "markov": 0.4,
    "drop": 0.5,
    "boundary-all": 0.4,
    "bias-all": 0.4,
    "markov-all": 0.4,
    "polygon-all": 0.25,
}
AIMS: Mapping[tuple[str, str], float] = {
    **{("hippocampus", name): least for name, least in _LEAST_E.items()},
    **{("phantom", name): round(least + 0.1, 2) for name, least in _LEAST_E.items()},
}
"""The E that the best method is to reach, per data set and scenario."""

HELD_OUT: Sequence[tuple[str, str]] = (
    ("phantom", "boundary"),
    ("hippocampus", "boundary"),
    ("hippocampus", "polygon"),
    ("lung", "boundary"),
    ("crowd", "crowd"),
)
"""Where networks are trained on cleaned labels and judged on held-out patients."""


@dataclass(frozen=True)
class Repeat:
    """A published setting: scenarios, the lines of its table, and the paper's figures in words."""

    title: str
    data: str
    scenarios: tuple[str, ...]
    lines: tuple[str, ...]
    held_out: bool
    paper: str


_REDEKOP_LINES = ("given", *REDEKOP, "truth")
PUBLISHED: Sequence[Repeat] = (
    Repeat(
        "Co-Seg, Type I",
        "phantom",
        tuple(f"coseg-{level}" for level in LEVELS),
        ("given", "coseg-published", "coseg", "truth"),
        held_out=True,
        paper="Co-Seg (arXiv 2102.00523) on JSRT lungs, Dice of the final network at noise levels "
        ".1 to .5: .975, .973, .975, .974, .976; trained without noise .976. So: flat in the noise "
        "level, and equal to clean training. No figure for training on the noisy labels is given.",
    ),
    Repeat(
        "Redekop & Chernyavskiy, 2D",
        "crowd",
        tuple(f"{name}-all" for name in OUTLINES),
        _REDEKOP_LINES,
        held_out=True,
        paper="On ISIC 2017 (2D, one object), Dice to clean masks for 3 vertices, 7 vertices, "
        "smooth: none .579, .783, .787; reweighting .795, .807, .803; relabelling .794, .805, "
        ".815; trained on clean masks .825. So: 3 vertices cost .25 and nearly all of it comes "
        "back; the milder noises cost .04 and most of it comes back.",
    ),
    Repeat(
        "Redekop & Chernyavskiy, CT",
        "lung",
        tuple(f"{name}-all" for name in OUTLINES),
        _REDEKOP_LINES,
        held_out=True,
        paper="On liver CT, Dice to clean masks for 3 vertices, 7 vertices, smooth: none .615, "
        ".853, .851; reweighting .846, .872, .872; relabelling .722, .880, .876 (the poster's last "
        "two columns may be swapped). So: on CT with 3 vertices reweighting is far ahead of "
        "relabelling.",
    ),
    Repeat(
        "Spatial Correction, Markov noise with bias",
        "phantom",
        ("markov-0.8-all", "markov-0.2-all"),
        ("nothing", *SPATIAL),
        held_out=False,
        paper="On JSRT training masks, Dice of the labels (lung, heart, clavicle): J1 (th1 .8) "
        ".784, .772, .828 given, and .914, .912, .889 after moving every outline by its class's "
        "mean bias, without any network; J2 (th1 .2) .685, .689, .758 and .854, .694, .813. "
        "Measured by us; the paper's own table could not be read. So: J1 is almost one number per "
        "class; J2 destroys shape, and a shift gives back less.",
    ),
)
"""Settings of the papers, repeated in shape on the data at hand."""


BINARY = ("lung", "crowd")
"""Data sets with one class."""


def names(scenario: Scenario, data: str, seed: int) -> tuple[str, ...]:
    """Return the lines of a scenario's table, in the order in which they can be run.

    The papers' own rules are repeated with the first seed only, and those that train networks of
    their own on the phantom only, where `TRAINED_AS_PUBLISHED` or the scenario asks for them.
    """
    methods = {n: e for n, e in METHODS.items() if _fits(n, e, scenario, data)}
    if seed != DATA[data].seeds[0]:
        methods = {n: e for n, e in methods.items() if not n.endswith(AS_PUBLISHED)}
    lines = ["nothing"]
    lines += [n for n, e in methods.items() if not e.votes]
    lines += [n for n, e in methods.items() if e.votes]
    if "uncertainty" in lines:
        lines.append("argmax")
    if scenario.trusted:
        lines.append("label shift")
    if scenario.noise == "annotator":
        lines.append("majority")
    return tuple(lines)


def _fits(name: str, entry: Entry, scenario: Scenario, data: str) -> bool:
    asked = name in scenario.methods or scenario.name in TRAINED_AS_PUBLISHED
    return not (
        (scenario.methods and name not in scenario.methods)
        or (entry.needs_trusted and not scenario.trusted)
        or (entry.binary and data not in BINARY)
        or (entry.knows_share and scenario.share == 1)
        or (entry.family.endswith(AS_PUBLISHED) and not (asked and data == "phantom"))
    )


def is_default(line: str) -> bool:
    """Tell whether a line is a method as it comes, told nothing that a user does not know."""
    entry = METHODS.get(line)
    return entry is not None and "rule" not in entry.params and not entry.knows_share


def owner(family: str) -> str:
    """Return the entry whose run trains the networks of a family."""
    return next(name for name, entry in METHODS.items() if entry.family == family)
