"""One-step attacks on a network whose gradient is known."""

from __future__ import annotations

import torch
from torch import nn

from kdbench.tracks.vision.data import MEAN, STD
from kdbench.tracks.vision.models import build
from kdbench.tracks.vision.robustness import fgsm


def images(n: int = 20) -> torch.Tensor:
    return (torch.rand(n, 3, 16, 16, generator=torch.Generator().manual_seed(0)) - MEAN) / STD


class Linear(nn.Module):
    """Two classes: the mean of all pixels, and its negative."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mean = x.mean((1, 2, 3))
        return torch.stack([mean, -mean], 1)


def test_every_pixel_moves_by_eps_against_the_label() -> None:
    x, y, eps = 0.1 * images(), torch.tensor([0, 1] * 10), 4 / 255
    moved = (fgsm(Linear(), x, y, eps) - x) * STD
    expected = eps * torch.where(y == 0, -1.0, 1.0)
    torch.testing.assert_close(moved, expected[:, None, None, None].expand_as(moved), rtol=0, atol=1e-6)


def test_pixels_stay_pixels_and_no_step_changes_nothing() -> None:
    x, y = images(), torch.zeros(20, dtype=torch.int64)
    attacked = fgsm(Linear(), x, y, 0.5) * STD + MEAN
    assert attacked.min() >= -1e-6
    assert attacked.max() <= 1 + 1e-6
    torch.testing.assert_close(fgsm(Linear(), x, y, 0.0), x)


def test_the_network_is_left_as_it_was() -> None:
    model = build("rn(2,1)", 4).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with torch.no_grad():
        attacked = fgsm(model, images(), torch.zeros(20, dtype=torch.int64), 8 / 255)
    assert not attacked.requires_grad
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())


def test_an_attack_raises_the_loss() -> None:
    model, x = build("rn(4,1)", 4).eval(), images()
    y = model(x).argmax(1)
    losses = [nn.functional.cross_entropy(model(z), y) for z in (x, fgsm(model, x, y, 1 / 255))]
    assert losses[1] > losses[0]
