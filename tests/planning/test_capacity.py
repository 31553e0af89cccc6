"""Presets: how large networks are for cases of some size, spacing and device."""

from math import prod

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raysegclean.nets.unet import NetworkSpec
from raysegclean.planning.capacity import fitted, plan_capacity

CT = (5.0, 0.8, 0.8), (100, 512, 512)
edge = st.integers(1, 300)
length = st.floats(0.3, 6.0)


def test_base_sees_a_body_at_once_and_has_a_level_for_each_halving() -> None:
    body = plan_capacity("base", (8.0, 8.0, 8.0), (46, 41, 38), gpu=False)
    assert body.widths == (16, 32, 64, 128)
    assert body.strides == ((2, 2, 2),) * 3
    assert (body.patch_vox, body.batch) == (65_536, 2)
    on_gpu = plan_capacity("base", (1.5, 1.5, 1.5), (300, 250, 250), gpu=True)
    assert on_gpu.widths == (16, 32, 64, 128)
    assert on_gpu.patch_vox == 2_000_000


def test_small_is_what_it_always_was() -> None:
    small = plan_capacity("small", (1.0, 1.0, 1.0), (36, 50, 35), gpu=False)
    assert (small.widths, small.strides) == ((8, 16, 32), ((2, 2, 2),) * 2)
    assert (small.patch_vox, small.batch, small.residual) == (65_536, 4, False)
    assert not small.deep_supervision


def test_large_is_wider_than_base_and_residual() -> None:
    base, large = (plan_capacity(p, *CT, gpu=True) for p in ("base", "large"))
    assert large.residual
    assert large.deep_supervision
    assert not base.residual
    assert all(a > b for a, b in zip(large.widths, base.widths, strict=True))


@pytest.mark.parametrize("levels", [1, 3, 7])
def test_a_number_of_levels_that_the_user_gives_is_kept(levels: int) -> None:
    found = plan_capacity("base", *CT, gpu=False, levels=levels)
    assert len(found.widths) == levels == len(found.strides) + 1


def test_a_patch_that_the_user_gives_decides_how_deep_the_network_is() -> None:
    found = plan_capacity("base", (1.0, 1.0, 1.0), (99, 99, 99), gpu=True, patch_zyx=(16, 24, 24))
    assert found.widths == (16, 32, 64)


@settings(max_examples=100, deadline=None)
@given(
    st.sampled_from(["small", "base", "large"]),
    st.tuples(length, length, length),
    st.tuples(edge, edge, edge),
    st.booleans(),
    st.sampled_from([2, 3]),
)
def test_every_capacity_is_a_network_that_its_patch_feeds(
    preset, spacing, shape, gpu, dims
) -> None:
    found = plan_capacity(preset, spacing, shape, gpu=gpu, dims=dims)
    spec = NetworkSpec(dims, 1, 3, found.widths, found.strides, residual=found.residual)
    patch = fitted(shape, found.patch_vox, spec.stride_zyx)
    assert all(n % s == 0 for n, s in zip(patch, spec.stride_zyx, strict=True))
    assert prod(patch) <= max(found.patch_vox, prod(spec.stride_zyx))
    if preset != "small" and len(found.widths) > 1:
        assert max(n // s for n, s in zip(patch, spec.stride_zyx, strict=True)) >= 5
