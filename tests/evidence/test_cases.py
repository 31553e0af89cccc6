import pytest

from raysegclean.errors import CaseError
from raysegclean.evidence.cases import CaseInfo, Intensity, LabelSummary, block_grid


def _case(*names):
    labels = tuple(LabelSummary(name, "uint8", {0: 8}, {}, "v") for name in names)
    zeros = Intensity(0, 0, 0, 0, 0, 0)
    return CaseInfo(
        case="c1",
        patient=None,
        site=None,
        annotator=None,
        shape_zyx=(2, 2, 2),
        channels=1,
        image_dtype="int16",
        spacing_mm=(1, 1, 1),
        intensity=zeros,
        labels=labels,
        image_version="v",
    )


def test_a_label_is_found_by_name():
    assert _case("organs", "expert").label("expert").name == "expert"


def test_a_missing_label_is_named_with_the_case_and_what_is_there():
    with pytest.raises(CaseError, match=r"case c1: label 'liver' is missing; it has organs"):
        _case("organs").label("liver")


def test_flat_block_indices_run_fastest_along_x():
    grid = block_grid((100, 65, 200))
    nz, ny, nx = grid.counts_zyx
    assert (nz, ny, nx) == (2, 2, 4)
    assert [(z * ny + y) * nx + x for z, y, x in grid.indices()] == list(range(len(grid)))
