"""The networks that papers distil on CIFAR, and its augmentation."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from kdbench.tracks.vision.batches import CROP, crop_flip
from kdbench.tracks.vision.data import MEAN, STD
from kdbench.tracks.vision.models import build
from kdbench.tracks.vision.spec import TEACHER_RECIPES, check_arch

PUBLISHED = {
    "resnet(20)": 0.28,
    "resnet(32)": 0.47,
    "resnet(56)": 0.86,
    "resnet(110)": 1.74,
    "resnet(8,4)": 1.23,
    "resnet(32,4)": 7.43,
    "wrn(16,2)": 0.70,
    "wrn(40,1)": 0.57,
    "wrn(40,2)": 2.26,
    "vgg(8)": 3.97,
    "vgg(13)": 9.46,
    "mobilenetv2(50)": 0.81,
    "shufflenetv2(100)": 1.36,
}
"""Millions of parameters with 100 classes, as surveys of the field list them."""


@pytest.mark.parametrize("arch", PUBLISHED)
def test_sizes_are_those_of_the_field(arch: str) -> None:
    model = build(arch, 100, 32)
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(PUBLISHED[arch], abs=0.01)
    assert arch.split("(")[0] in TEACHER_RECIPES


@pytest.mark.parametrize("arch", ["resnet(8)", "wrn(10,1)", "vgg(8)", "mobilenetv2(25)", "shufflenetv2(50)"])
def test_taps_and_gradients(arch: str) -> None:
    torch.manual_seed(0)
    model = build(arch, 10, 32)
    taps = model.taps(torch.randn(4, 3, 32, 32))
    assert torch.allclose(model.head()(taps.penult), taps.logits)
    sizes = [stage.shape[-1] for stage in taps.stages]
    assert sizes == sorted(sizes, reverse=True)
    F.cross_entropy(taps.logits, torch.arange(4)).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize(
    ("arch", "message"),
    [("resnet(21)", "6 n"), ("wrn(15,2)", "6 n"), ("vgg(11)", "vgg"), ("shufflenetv2(70)", "50, 100 or 150")],
)
def test_sizes_that_do_not_exist_are_explained(arch: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(check_arch(arch), 10, 32)


def test_shuffling_leaves_no_half_alone() -> None:
    torch.manual_seed(0)
    stage = build("shufflenetv2(50)", 10, 32).eval().stages[0]
    x = torch.randn(1, 24, 8, 8, requires_grad=True)
    stage(x)[:, :4].sum().backward()
    assert (x.grad.abs().sum((0, 2, 3)) > 0).all()


def window(whole: torch.Tensor, row: int, column: int, mirrored: bool) -> torch.Tensor:
    part = whole[:, row : row + 8, column : column + 8]
    return part.flip(2) if mirrored else part


def test_crops_lie_over_a_black_border_and_may_be_mirrored() -> None:
    x = torch.randn(64, 3, 8, 8)
    made = crop_flip(x, torch.Generator().manual_seed(0))
    padded = F.pad(x, (CROP,) * 4, value=(0 - MEAN) / STD)
    places = range(2 * CROP + 1)
    seen = set()
    for image, whole in zip(made, padded, strict=True):
        matches = [
            (row, column, mirrored)
            for row in places
            for column in places
            for mirrored in (False, True)
            if torch.equal(image, window(whole, row, column, mirrored))
        ]
        assert len(matches) == 1
        seen.update(matches)
    assert {mirrored for *_, mirrored in seen} == {False, True}
    assert {row for row, *_ in seen} == {column for _, column, _ in seen} == set(places)
