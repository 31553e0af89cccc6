"""A mixture gives each case one kind of error at most, whatever the order of the cases."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raysegclean.errors import ConfigError
from raysegclean.simulate.mixture import ErrorKind, kinds_of, share_out


@settings(deadline=None)
@given(st.integers(0, 60), st.lists(st.floats(0, 0.25), max_size=4), st.integers(0, 9))
def test_shares_are_exact_together_and_ignore_the_order(count, shares, seed):
    cases = [f"case{i}" for i in range(count)]
    kinds = [ErrorKind("drop", share, name=f"k{i}") for i, share in enumerate(shares)]
    found = share_out(cases, kinds, seed)
    assert found == share_out(cases[::-1], kinds, seed)
    for k in range(len(kinds) + 1):
        names = {kind.name for kind in kinds[:k]}
        have = sum(kind.name in names for kind in found.values())
        assert abs(have - sum(shares[:k]) * count) <= 0.5 + 1e-9


def test_what_a_file_says_becomes_kinds():
    kinds = kinds_of({"leak": {"share": 0.1}, "o": {"noise": "bias", "share": 1, "params": None}})
    assert [(k.noise, k.share, k.told) for k in kinds] == [("leak", 0.1, "leak"), ("bias", 1, "o")]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"leak": 0.1}, "leak: expected share"),
        ({"leak": {"share": 0.1, "seed": 1}}, "leak: expected share"),
        ({"leak": {"share": "half"}}, "share must be a number"),
        ({"leak": {"share": 0.1, "params": 3}}, "params must be"),
    ],
)
def test_what_is_no_mixture_is_refused(values, message):
    with pytest.raises(ConfigError, match=message):
        kinds_of(values)


def test_shares_beyond_all_cases_and_negative_seeds_are_refused():
    with pytest.raises(ConfigError, match=r"drop 0.7, leak 0.5"):
        share_out(["a"], [ErrorKind("drop", 0.7), ErrorKind("leak", 0.5)], 0)
    with pytest.raises(ConfigError, match="seed must be 0 or more, got -1"):
        share_out(["a"], [ErrorKind("drop", 1.0)], -1)
