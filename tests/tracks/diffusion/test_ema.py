"""Averages with a half-life in images."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from kdbench.tracks.diffusion.blocks.ema import HalfLife


def test_a_weight_counts_half_after_the_half_life():
    model = nn.Linear(1, 1, bias=False)
    with torch.no_grad():
        model.weight.fill_(1.0)
        average = HalfLife(model, images=300, ramp=None)
        model.weight.zero_()
    for _ in range(3):
        average.update(100)
    assert float(average.network.weight) == pytest.approx(0.5)
    assert average.seen == 300
    for _ in range(6):
        average.update(50)
    assert float(average.network.weight) == pytest.approx(0.25)


def test_the_ramp_shortens_the_memory_at_first():
    model = nn.Linear(1, 1, bias=False)
    average = HalfLife(model, images=1000, ramp=0.05)
    with torch.no_grad():
        model.weight.fill_(7.0)
    average.update(10)
    assert float(average.network.weight) == 7.0  # nothing was seen before
    assert average.decay(10) == pytest.approx(0.5 ** (10 / 0.5))
    average.seen = 100_000
    assert average.decay(10) == pytest.approx(0.5 ** (10 / 1000))


def test_buffers_are_copied_and_the_network_is_frozen():
    model = nn.BatchNorm1d(2)
    average = HalfLife(model, images=100)
    model.running_mean.fill_(3.0)
    average.update(1)
    assert average.network.running_mean.tolist() == [3.0, 3.0]
    assert not any(p.requires_grad for p in average.network.parameters())


def test_state_is_put_back():
    model = nn.Linear(2, 2)
    average, other = HalfLife(model, images=50), HalfLife(nn.Linear(2, 2), images=50)
    average.update(10)
    for mine, theirs in zip(other.parts, average.parts, strict=True):
        mine.load_state_dict(theirs.state_dict())
    assert other.seen == 10
    assert torch.equal(other.network.weight, average.network.weight)


@pytest.mark.parametrize(("images", "ramp"), [(0, 0.05), (10, 0)])
def test_half_lives_that_are_none(images, ramp):
    with pytest.raises(ValueError, match="above 0"):
        HalfLife(nn.Linear(1, 1), images, ramp)
