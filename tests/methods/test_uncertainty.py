"""Uncertainty relabelling beyond its policy: test-time views."""

import pytest

from raysegclean.errors import ConfigError
from raysegclean.methods.base import Voters, make_params
from raysegclean.methods.uncertainty.method import UNCERTAINTY, UncertaintyParams


def test_views_vote_only_where_they_are_asked_for() -> None:
    voters = UNCERTAINTY.voters(UncertaintyParams(voters="tta", members=1, views="rot180 darker"))
    assert voters == Voters(members=1, views=("rot180", "darker"))
    assert UNCERTAINTY.voters(UncertaintyParams()).views == ()


def test_by_default_an_image_is_flipped_as_in_training_only() -> None:
    voters = UNCERTAINTY.voters(UncertaintyParams(voters="tta"))
    assert voters.views == ("flips", "brighter", "darker", "contrast")


@pytest.mark.parametrize(("views", "told"), [("", "at least one view"), ("flip_w", "no view")])
def test_views_that_cannot_be_are_refused_by_name(views: str, told: str) -> None:
    with pytest.raises(ConfigError, match=f"params.views.*{told}"):
        make_params(UNCERTAINTY, {"voters": "tta", "views": views})
