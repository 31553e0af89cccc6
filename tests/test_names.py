"""Names that stand in run folders: none may change or go, whatever moves."""

import pytest

from raysegclean.names import BUILT_IN, Kind, load, name_of
from raysegclean.policy.edits import Reason

PINNED: dict[Kind, str] = {
    "method": "adele combine confident cores coseg coteaching integrity multisa reweight spatial "
    "transition uncertainty",
    "hook": "plain adele cores coseg coteaching presence relabel reweight transition",
    "network": "unet multisa nnunet",
    "look": "bias blend corrector corrector-rows features posterior shells",
}
REASONS = {
    "UNCHANGED": 0,
    "SHIFT": 1,
    "REPLACE": 2,
    "CORRECT": 3,
    "FLIP": 4,
    "BIAS": 5,
    "POSTERIOR": 6,
    "VOTE": 7,
    "BLEND": 8,
    "FILL": 9,
    "EXCHANGE": 10,
    "MIRROR": 11,
    "DISPLACE": 12,
    "CUT": 13,
    "REGION": 14,
}
EVERY = [(kind, name) for kind, names in BUILT_IN.items() for name in names]


class MyLook:
    """A user's own."""


@pytest.mark.parametrize("kind", BUILT_IN)
def test_names_that_old_runs_hold_are_still_known(kind: Kind) -> None:
    assert set(PINNED[kind].split()) == set(BUILT_IN[kind])


def test_reason_codes_of_published_labels_keep_their_meaning() -> None:
    assert {reason.name: int(reason) for reason in Reason} == REASONS


@pytest.mark.parametrize(("kind", "name"), EVERY)
def test_every_name_stands_for_something_that_is_there(kind: Kind, name: str) -> None:
    found = load(kind, name)
    assert found is load(kind, BUILT_IN[kind][name])
    if kind in ("hook", "look"):
        assert name_of(kind, found) == name


def test_what_users_bring_keeps_its_import_path() -> None:
    path = f"{__name__}:MyLook"
    assert name_of("look", MyLook) == path
