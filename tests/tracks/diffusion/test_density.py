"""Densities of samples, and what a discriminator's ratio is compared with."""

from __future__ import annotations

import pytest
import torch

from kdbench.cache import Cache
from kdbench.tracks.diffusion.blocks.density import LogRatios, log_density_of, log_ratios
from kdbench.tracks.diffusion.blocks.fdiv import DIVERGENCES
from kdbench.tracks.diffusion.blocks.ratio import DensityRatio
from kdbench.tracks.diffusion.networks.base import Denoiser
from kdbench.tracks.diffusion.networks.gmm import Mixture
from kdbench.tracks.diffusion.processes import Edm, Flow
from tests.helpers.denoisers import smoke_task


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("process", [Edm(), Flow()])
def test_samples_that_are_noised_are_a_mixture(process):
    samples, x = normal(7, 2), normal(5, 2, seed=1)
    t = torch.linspace(0.2, 0.9, 5, dtype=torch.float64)
    wanted = Mixture(samples, 1e-9).log_density(x, process.alpha(t), process.sigma(t))
    assert torch.allclose(log_density_of(process, x, t, samples), wanted, atol=1e-10)
    same = torch.zeros(5, 7, dtype=torch.bool)
    same[:, 2:4] = True
    wanted = Mixture(samples[2:4], 1e-9).log_density(x, process.alpha(t), process.sigma(t))
    assert torch.allclose(log_density_of(process, x, t, samples, same), wanted, atol=1e-10)


def test_what_is_said_of_ratios():
    exact = normal(50)
    found = LogRatios(2 * exact + 1, exact).summary()
    assert found["log_ratio_correlation"] == pytest.approx(1)
    assert found["log_ratio_error"] == pytest.approx(float((exact + 1).abs().mean()))
    assert LogRatios(torch.zeros(50), exact).summary()["log_ratio_correlation"] == 0
    kl = LogRatios(torch.zeros(50, dtype=torch.float64), exact).divergences(DIVERGENCES["kl"])
    assert kl == {"divergence_found": 0.0, "divergence_exact": pytest.approx(float((exact * exact.exp()).mean()))}


def test_a_generator_that_is_the_data_has_ratios_of_one(tmp_path):
    """What it gives are points of the mixture, whatever it is called on."""
    task = smoke_task("ring", tmp_path / "job", Cache(tmp_path / "cache"))

    class Perfect(Denoiser):
        process, shape, channels, shift = task.process, (2,), {"mid": 2}, 0.0

        def denoise(self, x, t, cond, features):
            points = task.kind.mixture.sample(len(x), torch.Generator().manual_seed(len(x)), cond.tokens[:, 0])[0]
            return (points + self.shift, {"mid": x}) if features else points + self.shift

    perfect = Perfect()
    heads = torch.nn.Module()
    heads.forward = lambda maps: torch.zeros(len(maps["mid"]), 1)
    ratio = DensityRatio(task.process, least=1e-3, most=1e3)
    near = log_ratios(task, perfect, [2.5], perfect, heads, ratio)
    assert not near.found.any()
    assert near.exact.abs().mean() < 0.2
    perfect.shift = 1.0
    assert log_ratios(task, perfect, [2.5], perfect, heads, ratio).exact.abs().mean() > 0.5
