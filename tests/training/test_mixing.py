"""Mixing in pairs: shares, targets, parts of a batch, rectangles."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from kdbench.errors import UsageError
from kdbench.training.mixing import mix, one_hot, rectangles, shares


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def batch(b: int = 32, classes: int = 5) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(0)
    return torch.randn(b, 3, 8, 8, generator=g), torch.randint(classes, (b,), generator=g)


@pytest.mark.parametrize("alpha", [0.2, 1.0, 4.0])
def test_shares_are_beta_distributed(alpha: float) -> None:
    drawn = shares(20_000, alpha, rng())
    assert drawn.mean() == pytest.approx(0.5, abs=0.02)
    assert drawn.var() == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.05)
    assert len(drawn.unique()) > 1000  # one per sample


def test_drawing_with_replacement_leaves_more_of_the_batch_mixed() -> None:
    keep, size = 0.9, 20_000
    drawn = {how: shares(size, 1.0, rng(), keep=keep, replacement=how) for how in (False, True)}
    mixed = {how: float((values < 1).double().mean()) for how, values in drawn.items()}
    assert mixed[False] == pytest.approx(1 - keep, abs=1e-9)
    assert mixed[True] == pytest.approx(math.exp(-keep), abs=0.01)


@pytest.mark.parametrize(("alpha", "keep"), [(0.0, 0.5), (1.0, 1.5), (1.0, -0.1)])
def test_impossible_settings_are_explained(alpha: float, keep: float) -> None:
    with pytest.raises(UsageError, match="expected alpha > 0 and keep between 0 and 1"):
        shares(4, alpha, rng(), keep=keep)


@pytest.mark.parametrize("kind", ["mixup", "cutmix"])
def test_nothing_is_mixed_where_all_is_kept(kind: str) -> None:
    x, y = batch()
    made = mix(x, y, 5, rng(), keep=1.0, replacement=False, kind=kind)
    assert (made.share == 1).all()
    # the same images in another order, each with its own label
    origin = torch.cdist(made.x.flatten(1), x.flatten(1)).argmin(1)
    assert origin.sort().values.tolist() == list(range(len(x)))
    assert torch.equal(made.x, x[origin])
    assert torch.equal(made.target, one_hot(y[origin], 5))


def test_images_and_targets_have_the_same_share() -> None:
    # Images that are their one-hot label at every pixel: what is done to them must be what is done to the labels.
    _, y = batch(classes=3)
    x = one_hot(y, 3)[:, :, None, None].expand(-1, 3, 8, 8).contiguous()
    for kind in ("mixup", "cutmix"):
        made = mix(x, y, 3, rng(), kind=kind)
        torch.testing.assert_close(made.x.mean((2, 3)), made.target)
        torch.testing.assert_close(made.target.sum(1), torch.ones(len(y)))
        assert 0.2 < made.share.mean() < 0.9


def test_cutmix_takes_every_pixel_from_one_of_the_two() -> None:
    x, y = batch()
    made = mix(x, y, 5, rng(), kind="cutmix")
    values = {tuple(pixel) for pixel in x.permute(0, 2, 3, 1).reshape(-1, 3).tolist()}
    assert {tuple(pixel) for pixel in made.x.permute(0, 2, 3, 1).reshape(-1, 3).tolist()} <= values


def test_rectangles_cover_their_area_or_less_at_the_border() -> None:
    area = torch.linspace(0, 1, 200)
    covered = rectangles(area, (16, 16), rng()).float().mean((1, 2))
    assert (covered <= area + 1e-6).all()
    assert covered[0] == 0
    whole = rectangles(torch.full((500,), 0.25), (16, 16), rng()).float().mean((1, 2))
    assert whole.max() == 0.25


def test_images_without_a_label_add_nothing_to_the_target() -> None:
    x, y = batch()
    made = mix(x, torch.full_like(y, -1), 5, rng())
    assert made.target.abs().max() == 0
    assert one_hot(torch.tensor([1, -1]), 3).tolist() == [[0, 1, 0], [0, 0, 0]]


def test_the_generator_decides_everything() -> None:
    x, y = batch()
    assert torch.equal(mix(x, y, 5, rng(1)).x, mix(x, y, 5, rng(1)).x)
    assert not torch.equal(mix(x, y, 5, rng(1)).x, mix(x, y, 5, rng(2)).x)
