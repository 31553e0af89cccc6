"""Large bodies are seen coarser than they were scanned, small cases as they are."""

import math

import pytest

from raysegclean.evidence.cases import CaseImage, Intensity
from raysegclean.planning.capacity import PATCH_VOX_CPU, PATCH_VOX_GPU
from raysegclean.planning.spacing import plan_spacing, spacing_notes
from raysegclean.voxels.geometry import Index3

FLAT = Intensity(minimum=0, p005=0, p995=0, maximum=0, mean=0, std=0)


def cases(*rows: tuple[Index3, tuple[float, float, float]]) -> list[CaseImage]:
    return [
        CaseImage(case=f"c{n}", shape_zyx=shape, spacing_mm=spacing, intensity=FLAT)
        for n, (shape, spacing) in enumerate(rows)
    ]


BODIES = cases(((101, 122, 112), (3.0, 3.0, 3.0)), ((60, 460, 380), (5.0, 0.8, 0.8)))
HIPPOCAMPI = cases(((35, 50, 35), (1.0, 1.0, 1.0)), ((31, 44, 40), (1.0, 1.0, 1.0)))
NODULES = cases(((6, 44, 44), (2.5, 0.5, 0.5)), ((20, 50, 48), (1.0, 0.98, 0.98)))
CELLS = cases(((1, 90, 130), (1.0, 1.0, 1.0)), ((1, 60, 80), (1.0, 1.0, 1.0)))


@pytest.mark.parametrize("small", [HIPPOCAMPI, NODULES, CELLS])
@pytest.mark.parametrize("budget", [PATCH_VOX_CPU, PATCH_VOX_GPU])
def test_small_cases_stay_native_even_where_spacings_differ(
    small: list[CaseImage], budget: int
) -> None:
    assert plan_spacing(small, budget) is None


def test_the_voxels_of_a_window_are_spread_over_the_body() -> None:
    body = cases(((100, 101, 122), (3.0, 3.0, 3.0)))
    assert plan_spacing(body, PATCH_VOX_CPU) == (8.0, 8.0, 8.0)
    assert plan_spacing(body, PATCH_VOX_GPU) is None
    finer = cases(((300, 303, 366), (1.0, 1.0, 1.0)))
    assert plan_spacing(finer, PATCH_VOX_GPU) == (2.6, 2.6, 2.6)


def test_a_window_that_holds_half_of_a_case_leaves_it_native() -> None:
    assert plan_spacing(cases(((32, 64, 64), (2.5, 1.5, 1.5))), PATCH_VOX_CPU) is None
    assert plan_spacing(cases(((32, 65, 65), (2.5, 1.5, 1.5))), PATCH_VOX_CPU) is not None


def test_no_axis_is_seen_finer_than_the_archive() -> None:
    thick = cases(((36, 460, 380), (9.0, 0.8, 0.8)))
    found = plan_spacing(thick, PATCH_VOX_CPU)
    assert found is not None
    z, y, x = found
    assert z == 9.0
    assert y == x > 0.8
    assert 36 * (460 * 0.8 / y) * (380 * 0.8 / x) <= PATCH_VOX_CPU
    assert 36 * (460 * 0.8 / (y * 0.97)) * (380 * 0.8 / (x * 0.97)) > PATCH_VOX_CPU


def test_of_a_whole_body_only_so_much_counts_along_each_axis() -> None:
    long = cases(((2000, 400, 400), (1.0, 1.0, 1.0)))
    assert plan_spacing(long, PATCH_VOX_CPU) == plan_spacing(
        cases(((400, 400, 400), (1.0, 1.0, 1.0))), PATCH_VOX_CPU
    )


def test_networks_of_slices_keep_all_slices() -> None:
    assert plan_spacing(BODIES, PATCH_VOX_CPU, dims=2) is None
    fine = cases(((60, 1024, 1024), (5.0, 0.3, 0.3)))
    found = plan_spacing(fine, PATCH_VOX_CPU, dims=2)
    assert found == (0.0, 1.2, 1.2)
    assert math.prod(1024 * 0.3 / edge for edge in found[1:]) <= PATCH_VOX_CPU


def test_the_notes_say_how_many_cases_are_resampled() -> None:
    assert spacing_notes(BODIES, None) == ()
    (note,) = spacing_notes(BODIES, (3.0, 3.0, 3.0))
    assert "3 x 3 x 3 mm" in note
    assert "1 of 2 cases" in note
