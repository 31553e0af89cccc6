"""The default policy on stored evidence: what it does to clean and to wrong cases stays so."""

from unittest.mock import patch

import pytest
from replaying import NUMBERS_OFF, PARTS_OFF, archives, replayed

from raysegclean.policy.params import PolicyParams

STORED = {one.name: one for one in archives()}
WRONG_EDITED = {
    "hippocampus.boundary.uncertainty.s1": 88,
    "hippocampus.drop.uncertainty.s1": 100,
    "hippocampus.polygon.uncertainty.s1": 83,
    "phantom.drop.uncertainty.s1": 20,
    "phantom.polygon.uncertainty.s1": 20,
    "phantom.boundary.uncertainty.s1": 19,
}
"""Wrong cases that are edited, per archive; where one more or less is, that is told here."""


@pytest.mark.parametrize("name", STORED)
def test_clean_cases_are_left_alone(name: str) -> None:
    found = replayed(STORED[name], PolicyParams())
    assert found.clean_edited == 0, f"{found.clean_edited} of {found.clean} clean cases are edited"
    assert found.wrong_edited == WRONG_EDITED.get(name, 0), "pin what is found of wrong cases"


def test_some_evidence_is_stored_and_every_rule_can_be_switched_off() -> None:
    assert set(WRONG_EDITED) <= set(STORED)
    for numbers in NUMBERS_OFF.values():
        PolicyParams(**numbers)
    for module, name, _ in PARTS_OFF.values():
        assert callable(getattr(module, name))


def test_a_rule_that_is_switched_off_decides_otherwise() -> None:
    stored = STORED["phantom.boundary.uncertainty.s1"]
    usual = replayed(stored, PolicyParams())
    off = replayed(stored, PolicyParams(**NUMBERS_OFF["outlines off the centre"]))
    assert off.edits != usual.edits
    with patch.object(*PARTS_OFF["noisy groups by added candidates"]):
        replayed(stored, PolicyParams())
    assert replayed(stored, PolicyParams()) == usual
