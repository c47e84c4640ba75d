"""Views: what is mixed with what, shares that match pixels, and draws that seeds decide."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from kdbench.errors import UsageError
from kdbench.tracks.dataset_distillation.blocks.views import augment, mirrored, mix, resized_crop, views


@pytest.fixture
def images():
    return torch.randn(6, 2, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def test_cutmix_takes_pixels_and_the_share_is_theirs(images):
    before = images.clone()
    for seed in range(20):
        mixed = mix(images, "cutmix", 1.0, np.random.default_rng(seed))
        assert torch.equal(mixed.x[..., mixed.box], images[mixed.perm][..., mixed.box])
        assert torch.equal(mixed.x[..., ~mixed.box], images[..., ~mixed.box])
        assert mixed.lam == pytest.approx(float((~mixed.box).double().mean()), abs=1e-6)
    assert torch.equal(images, before), "the images themselves are not changed"


def test_mixup_and_labels_are_exactly_linear(images):
    mixed = mix(images, "mixup", 0.8, np.random.default_rng(1))
    assert torch.allclose(mixed.x, mixed.lam * images + (1 - mixed.lam) * images[mixed.perm], atol=0, rtol=0)
    a, b = torch.randn(2, 6, 3, dtype=torch.float64)
    together = mixed.interpolate(2 * a - 3 * b)
    assert torch.allclose(together, 2 * mixed.interpolate(a) - 3 * mixed.interpolate(b), atol=1e-12)


def test_nothing_is_mixed_without_a_kind(images):
    mixed = mix(images, "none", 1.0, np.random.default_rng(0))
    assert mixed.x is images
    assert mixed.lam == 1
    with pytest.raises(UsageError, match="alpha > 0"):
        mix(images, "mixup", 0.0, np.random.default_rng(0))


def test_an_epoch_has_every_image_once_and_is_decided_by_its_seed(images):
    def epoch(number: int, seed: int):
        found = views(images, 4, number, seed, augmented=True, flip=False, kind="cutmix", alpha=1.0)
        return [(view.rows, view.mixed.x) for view in found]

    one = epoch(0, 5)
    assert sorted(torch.cat([rows for rows, _ in one]).tolist()) == list(range(6))
    assert all(torch.equal(a[1], b[1]) for a, b in zip(one, epoch(0, 5), strict=True))
    assert not all(torch.equal(a[1], b[1]) for a, b in zip(one, epoch(1, 5), strict=True))
    assert not all(torch.equal(a[1], b[1]) for a, b in zip(one, epoch(0, 6), strict=True))


def test_augmented_images_are_small_moves():
    x = torch.zeros(32, 1, 16, 16)
    x[:, :, 7:9, 7:9] = 1
    moved = augment(x, np.random.default_rng(0))
    places = (moved[:, 0] * torch.arange(16.0)).sum((1, 2)) / moved[:, 0].sum((1, 2))
    assert float((places - 7.5).abs().max()) <= 2.1
    assert float(places.std()) > 0.5


def test_crops_and_mirrors():
    x = torch.arange(64.0).view(1, 1, 8, 8).repeat(40, 1, 1, 1)
    flipped = mirrored(x, np.random.default_rng(0))
    share = (flipped[:, 0, 0, 0] != 0).double().mean()
    assert 0.2 < share < 0.8
    whole = resized_crop(x, np.random.default_rng(0), smallest=1.0)
    assert torch.allclose(whole, x, atol=1e-3)
    part = resized_crop(x, np.random.default_rng(0), smallest=0.25)
    spread = part.flatten(1).amax(1) - part.flatten(1).amin(1)
    assert bool((spread <= 63.01).all())
    assert float(spread.min()) < 55, "a part does not have all values"
