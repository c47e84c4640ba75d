"""Density ratios of a discriminator on a common scale over the noise levels."""

from __future__ import annotations

import math

import pytest
import torch

from kdbench.tracks.diffusion.blocks.ratio import DensityRatio
from kdbench.tracks.diffusion.processes import Edm, Flow
from tests.helpers.line import THETA, generator_at, points, ratio


def test_logits_become_ratios_within_bounds_and_heads_are_averaged():
    found = DensityRatio(Flow()).raw(torch.tensor([[0.0, 2.0], [-100.0, 0.0], [300.0, 0.0]]))
    assert torch.allclose(found, torch.tensor([math.e, 0.1, 20.0]))
    assert torch.allclose(DensityRatio(Flow(), most=1e6).raw(torch.tensor([50.0])), torch.tensor([math.exp(10)]))
    assert not DensityRatio(Flow()).raw(torch.zeros(2, requires_grad=True)).requires_grad


def test_the_optimal_discriminator_gives_the_ratio_of_the_densities_whose_mean_is_one():
    p = generator_at(THETA)
    x, weight = points(p, 0.6)
    wanted = ratio(p, x, 0.6)
    believed = wanted.log().abs() < 10
    found = DensityRatio(Edm(), least=1e-9, most=1e9).raw(wanted.log())
    assert torch.allclose(found.double()[believed], wanted[believed], rtol=1e-5)
    assert (weight * wanted).sum().item() == pytest.approx(1, abs=1e-6)


def test_bins_are_even_in_time():
    process = Flow()
    ratios = DensityRatio(process, bins=4)
    width = (process.t_max - process.t_min) / 4
    middle = process.t_min + width * (torch.arange(4) + 0.5)
    assert ratios.bins(middle).tolist() == [0, 1, 2, 3]
    assert ratios.bins(torch.tensor([0.0, process.t_min, process.t_max, 2.0])).tolist() == [0, 0, 3, 3]


def test_ratios_of_a_level_have_mean_one_and_other_levels_keep_theirs():
    ratios = DensityRatio(Flow(), bins=10)
    t = torch.tensor([0.1, 0.1, 0.1, 0.9, 0.9])
    found = ratios(torch.tensor([0.0, 1.0, 2.0, -1.0, -2.0]), t)
    assert found[:3].mean().item() == pytest.approx(1, abs=1e-5)
    assert found[3:].mean().item() == pytest.approx(1, abs=1e-5)
    assert (found[1] / found[0]).item() == pytest.approx(math.e, rel=1e-5)
    assert (ratios.means != 1).sum() == 2


def test_the_mean_of_a_level_moves_by_its_rate():
    ratios = DensityRatio(Flow(), bins=1, rate=0.75)
    t = torch.full((2,), 0.5)
    first = ratios(torch.tensor([math.log(2.0), math.log(4.0)]), t)
    assert ratios.means.item() == pytest.approx(0.75 + 0.25 * 3, rel=1e-5)
    assert torch.allclose(first, torch.tensor([2.0, 4.0]) / 1.5, rtol=1e-5)
    ratios(torch.zeros(2), t)
    assert ratios.means.item() == pytest.approx(0.75 * 1.5 + 0.25, rel=1e-5)


def test_it_goes_on_from_its_state():
    generator = torch.Generator().manual_seed(0)
    logits, t = torch.randn(3, 20, generator=generator), torch.rand(3, 20, generator=generator)
    one, other = DensityRatio(Flow(), rate=0.5), DensityRatio(Flow(), rate=0.5)
    one(logits[0], t[0])
    kept = {"means": one.state_dict()["means"].clone()}
    wanted = one(logits[1], t[1])
    other.load_state_dict(kept)
    assert torch.equal(other(logits[1], t[1]), wanted)
    other(logits[2], t[2])
    assert not torch.equal(other.means, kept["means"])
