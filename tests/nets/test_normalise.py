"""Normalising: one scale for CT, one per case for everything else."""

import numpy as np
import pytest

from raysegclean.errors import ConfigError, InputError
from raysegclean.evidence.cases import CaseInfo, Intensity
from raysegclean.nets.normalise import Normaliser, plan_normaliser


def info(values: np.ndarray) -> CaseInfo:
    low, high = np.percentile(values, [0.5, 99.5])
    intensity = Intensity(
        float(values.min()), float(low), float(high), float(values.max()),
        float(values.mean()), float(values.std()),
    )  # fmt: skip
    return CaseInfo(
        case="c", patient=None, site=None, annotator=None, shape_zyx=values.shape, channels=1,
        image_dtype="int16", spacing_mm=(1, 1, 1), intensity=intensity, labels=(),
        image_version="v",
    )  # fmt: skip


def test_ct_archives_share_one_scale() -> None:
    rng = np.random.default_rng(0)
    cases = [np.concatenate([np.full(500, -1000.0), rng.normal(50, 30, 500)]) for _ in range(2)]
    cases = [case.reshape(10, 10, 10) for case in cases]
    plan = plan_normaliser([info(case) for case in cases])
    assert plan.kind == "ct"
    both = np.stack(cases)
    assert plan.mean == pytest.approx(both.mean())
    assert plan.std == pytest.approx(both.std())
    first, second = (plan.apply(case[None], info(case).intensity) for case in cases)
    out = np.stack([first, second])
    assert abs(out.mean()) < 0.01
    assert abs(out.std() - 1) < 0.01
    far = np.full((1, 1, 1, 1), 30000, np.int16)
    at_most = (plan.high - plan.mean) / plan.std
    assert plan.apply(far, info(cases[0]).intensity).item() == pytest.approx(at_most, rel=1e-5)


def test_one_ct_case_with_air_makes_the_archive_ct() -> None:
    body = np.linspace(0, 100, 1000).reshape(10, 10, 10)
    assert plan_normaliser([info(body)]).kind == "case"
    assert plan_normaliser([info(body), info(body - 1000)]).kind == "ct"


def test_mr_cases_are_brought_to_their_own_mean_and_deviation() -> None:
    dim, bright = (np.random.default_rng(i).gamma(2, 10.0**i, (6, 6, 6)) for i in (1, 3))
    plan = plan_normaliser([info(dim), info(bright)])
    assert plan == Normaliser("case")
    for case in (dim, bright):
        out = plan.apply(case[None], info(case).intensity)
        assert out.dtype == np.float32
        assert out.mean() == pytest.approx(0, abs=1e-5)
        assert out.std() == pytest.approx(1, abs=1e-5)


def test_a_window_is_normalised_like_the_whole_image() -> None:
    image = np.random.default_rng(0).integers(-1000, 1000, (1, 8, 8, 8)).astype(np.int16)
    plan = plan_normaliser([info(image[0])])
    whole = plan.apply(image, info(image[0]).intensity)
    window = plan.apply(image[:, 2:5, 3:4], info(image[0]).intensity)
    np.testing.assert_array_equal(window, whole[:, 2:5, 3:4])


def test_a_constant_image_becomes_zero_not_nan() -> None:
    image = np.full((1, 2, 2, 2), 7, np.uint8)
    assert (Normaliser("case").apply(image, info(image[0]).intensity) == 0).all()


@pytest.mark.parametrize("kind", ["ct", "case"])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_nan_and_infinity_are_refused(kind, bad) -> None:
    image = np.zeros((1, 2, 2, 2), np.float32)
    image[0, 1, 1, 1] = bad
    with pytest.raises(InputError, match="1 voxels are NaN or infinite"):
        Normaliser(kind, high=1.0).apply(image, Intensity(0, 0, 1, 1, 0, 1))


def test_the_input_is_left_alone() -> None:
    image = np.ones((1, 2, 2, 2), np.float32)
    Normaliser("case").apply(image, Intensity(0, 0, 1, 1, 0.5, 2))
    assert (image == 1).all()


def test_an_empty_archive_has_no_scale() -> None:
    with pytest.raises(ConfigError, match="no case"):
        plan_normaliser([])
