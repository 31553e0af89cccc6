"""Augmentation: keyed by the sample, labels follow the image, lengths are millimetres."""

import numpy as np
import pytest
import torch

from raysegclean.nets import augment as augmentation
from raysegclean.nets.augment import augment
from raysegclean.nets.batch import Batch
from raysegclean.voxels.channels import IGNORE

torch.set_num_threads(1)
ISO = (1.0, 1.0, 1.0)


def batch_of(shape=(12, 14, 16), samples: int = 6, step: int = 3, channels: int = 1) -> Batch:
    rng = np.random.default_rng(0)
    image = rng.normal(size=(samples, channels, *shape)).astype(np.float32)
    label = rng.integers(0, 4, (samples, *shape))
    label[:, :2] = IGNORE
    names = [f"c{n}" for n in range(samples)]
    return Batch(torch.from_numpy(image), torch.from_numpy(label), names, step)


def part(batch: Batch, samples: slice) -> Batch:
    return Batch(batch.image[samples], batch.label[samples], batch.case[samples], batch.step)


def test_a_sample_is_changed_alike_in_every_rank_and_otherwise_at_every_step() -> None:
    batch = batch_of(samples=6)
    whole = augment(batch, 7, [ISO] * 6)
    for rank in range(2):
        mine = augment(part(batch, slice(rank, None, 2)), 7, [ISO] * 3, first=rank, every=2)
        assert torch.equal(mine.image, whole.image[rank::2])
        assert torch.equal(mine.label, whole.label[rank::2])
    later = augment(batch_of(step=4), 7, [ISO] * 6)
    assert not torch.equal(later.image, whole.image)
    assert not torch.equal(augment(batch, 8, [ISO] * 6).image, whole.image)


@pytest.mark.parametrize("shape", [(12, 14, 16), (1, 20, 24), (5, 20, 24)])
def test_labels_keep_their_values_and_images_stay_finite(shape) -> None:
    for step in range(12):
        batch = batch_of(shape, step=step, channels=2)
        changed = augment(batch, 0, [(5.0, 1.0, 1.0)] * 6)
        assert changed.image.shape == batch.image.shape
        assert changed.label.dtype == batch.label.dtype
        assert set(changed.label.unique().tolist()) <= {IGNORE, 0, 1, 2, 3}
        assert torch.isfinite(changed.image).all()


def rods(spacing_mm: tuple[float, float, float]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return an image and a label of the same ball of 10 mm, in voxels of this size."""
    shape = tuple(round(40 / s) for s in spacing_mm)
    places = np.meshgrid(
        *((np.arange(n) + 0.5) * s - 20 for n, s in zip(shape, spacing_mm, strict=True)),
        indexing="ij",
    )
    inside = sum((p - at) ** 2 for p, at in zip(places, (0, 6, 4), strict=True)) < 100
    return torch.from_numpy(inside.astype(np.float32))[None], torch.from_numpy(inside.astype(int))


@pytest.mark.parametrize("spacing", [ISO, (2.0, 1.0, 1.0), (1.0, 2.0, 0.5)])
def test_turns_are_rigid_in_millimetres_and_the_label_goes_with_the_image(spacing) -> None:
    image, label = rods(spacing)
    theta = augmentation._theta((0.2, -0.1, 0.25), 1.0, label.shape, spacing)
    moved, near = augmentation._moved(image, label, theta)
    assert float(((moved[0] > 0.5) != (near == 1)).float().mean()) < 0.01
    assert int((near == 1).sum()) == pytest.approx(int(label.sum()), rel=0.04)
    extent = [
        float(np.ptp(at) + 1) * s for at, s in zip(np.nonzero(near == 1).T, spacing, strict=True)
    ]
    assert extent == pytest.approx([20, 20, 20], abs=2.5)


def test_a_zoom_scales_volumes_and_what_lies_beyond_the_patch_is_ignored() -> None:
    image, label = rods(ISO)
    sizes = {}
    for factor in (0.8, 1.25):
        theta = augmentation._theta((0.0, 0.0, 0.0), factor, label.shape, ISO)
        _, near = augmentation._moved(image, label, theta)
        sizes[factor] = int((near == 1).sum()) / int(label.sum())
        assert bool((near == IGNORE).any()) == (factor < 1)
    assert sizes[1.25] / sizes[0.8] == pytest.approx((1.25 / 0.8) ** 3, rel=0.1)


def test_the_identity_moves_nothing() -> None:
    batch = batch_of((7, 8, 9), samples=1)
    theta = augmentation._theta((0.0, 0.0, 0.0), 1.0, (7, 8, 9), (3.0, 1.0, 2.0))
    image, label = augmentation._moved(batch.image[0], batch.label[0], theta)
    torch.testing.assert_close(image, batch.image[0], atol=1e-5, rtol=1e-5)
    assert torch.equal(label, batch.label[0])


def test_thick_planes_are_turned_in_plane_only() -> None:
    draws = iter([0.9, 0.9, 0.9])
    assert augmentation._angles(draws, (20, 30, 30), (5.0, 1.0, 1.0))[1:] == (0.0, 0.0)
    draws = iter([0.9, 0.9, 0.9])
    assert all(augmentation._angles(draws, (20, 30, 30), (2.0, 1.0, 1.0)))
