"""The default policy on stored evidence: what it does to clean and to wrong cases stays so."""

import pytest
from replaying import RULES, archives, replayed

from raysegclean.policy.params import PolicyParams

STORED = archives()


@pytest.mark.parametrize("archive", STORED, ids=lambda one: one.name)
def test_clean_cases_are_left_alone(archive) -> None:
    found = replayed(archive, PolicyParams())
    assert found.clean_edited == 0, f"{found.clean_edited} of {found.clean} clean cases are edited"


def test_some_evidence_is_stored_and_every_rule_can_be_switched_off() -> None:
    assert STORED
    for numbers in RULES.values():
        PolicyParams(**numbers)
