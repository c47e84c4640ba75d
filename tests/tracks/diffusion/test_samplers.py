"""Samplers follow the flow of an exact denoiser, and count what they evaluate."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from kdbench.errors import ArtifactError
from kdbench.tracks.diffusion.conditions import Condition
from kdbench.tracks.diffusion.networks.gmm import ExactDenoiser, Mixture
from kdbench.tracks.diffusion.processes import Edm, Flow, Vp
from kdbench.tracks.diffusion.samplers.base import Sampler
from kdbench.tracks.diffusion.samplers.fewstep import FewStep, next_state, one_step
from kdbench.tracks.diffusion.samplers.reals import Reals
from kdbench.tracks.diffusion.samplers.solvers import Solver, euler_step, heun_step

NORMAL = Mixture([[1.0, -2.0]], 0.5)
CLASSES = Mixture([[1.0, 0.0], [-1.0, 0.0]], 0.1, labels=[1, 2])


def noise(rows: int = 64) -> torch.Tensor:
    return torch.randn(rows, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def drawn(sampler, rows: int = 64, cond: Condition | None = None):
    return sampler.sample(noise(rows), cond or Condition.none(rows), torch.Generator().manual_seed(1))


def flow_of_a_normal(process, start: float) -> torch.Tensor:
    """Where the flow of one Gaussian leads: the quantile of the prior is kept (closed form)."""
    x = process.prior(noise(), start)
    alpha, sigma = float(process.alpha(start)), float(process.sigma(start))
    std = (alpha**2 * 0.25 + sigma**2) ** 0.5
    return NORMAL.means + 0.5 * (x - alpha * NORMAL.means) / std


@pytest.mark.parametrize("process", [Edm(sigma_max=20.0), Flow(), Vp()], ids=lambda process: process.name)
def test_solvers_reach_the_end_of_the_flow_and_heun_is_nearer(process):
    teacher, wanted = ExactDenoiser(NORMAL, process), flow_of_a_normal(process, process.t_max)
    errors = {}
    for method in ("euler", "heun"):
        for steps in (16, 64):
            x = drawn(Solver(teacher, process.grid(steps).tolist(), method)).x
            errors[method, steps] = float((x - wanted).abs().max())
    assert errors["heun", 64] < 0.02
    assert errors["heun", 64] < 0.3 * errors["euler", 64]
    assert errors["euler", 64] < 0.5 * errors["euler", 16]


def test_heun_is_of_second_order():
    process = Edm()
    teacher = ExactDenoiser(NORMAL, process)
    x = process.prior(noise(), 2.0)
    std = lambda t: (0.25 + t**2) ** 0.5  # noqa: E731
    exact = NORMAL.means + (x - NORMAL.means) * std(1.0) / std(2.0)

    def error(step, count: int) -> float:
        state, times = x, torch.linspace(2.0, 1.0, count + 1, dtype=torch.float64).tolist()
        for t, s in pairwise(times):
            state = step(teacher, state, t, s, Condition.none(len(x)))
        return float((state - exact).abs().max())

    assert error(heun_step, 8) / error(heun_step, 16) == pytest.approx(4, rel=0.15)
    assert error(euler_step, 8) / error(euler_step, 16) == pytest.approx(2, rel=0.15)


def test_evaluations_are_counted():
    process = Edm()
    teacher = ExactDenoiser(CLASSES, process)
    cond = Condition.of_tokens(torch.ones(64, dtype=torch.int64))
    grid = process.grid(6).tolist()
    assert drawn(Solver(teacher, grid, "euler"), cond=cond).nfe == 6
    assert drawn(Solver(teacher, grid, "heun"), cond=cond).nfe == 11, "the last step is of first order"
    assert drawn(Solver(teacher, grid, "heun", guidance=2.0), cond=cond).nfe == 22
    assert drawn(one_step(teacher, 2.5), cond=cond).nfe == 1
    assert drawn(FewStep(teacher, [5.0, 1.0, 0.2]), cond=cond).nfe == 3


def test_trajectories_go_from_the_prior_to_the_sample():
    process = Edm()
    teacher = ExactDenoiser(NORMAL, process)
    sampled = drawn(FewStep(teacher, [5.0, 1.0], "jump"))
    assert len(sampled.trajectory) == 3
    assert torch.equal(sampled.trajectory[0], 5.0 * noise())
    assert torch.equal(sampled.trajectory[-1], sampled.x)


def test_experts_take_their_own_steps():
    process = Edm()
    left, right = (ExactDenoiser(Mixture([[value, 0.0]], 0.1), process) for value in (-3.0, 3.0))
    sampled = drawn(FewStep([left, right], [5.0, 1.0]))
    assert float(sampled.x[:, 0].mean()) == pytest.approx(3.0, abs=0.2)
    assert sampled.nfe == 2
    with pytest.raises(ValueError, match="2 networks for 3 times"):
        FewStep([left, right], [5.0, 1.0, 0.5])
    with pytest.raises(ValueError, match="decrease"):
        FewStep(left, [1.0, 5.0])
    with pytest.raises(ValueError, match="decrease to 0"):
        Solver(left, [5.0, 1.0])


@pytest.mark.parametrize("process", [Edm(), Flow(), Vp()], ids=lambda process: process.name)
def test_transitions(process):
    x0, n, fresh = noise(), noise().flip(0), noise().roll(1, 0)
    t, s = process.grid(4)[1].item(), process.grid(4)[2].item()
    x = process.noised(x0, n, t)
    assert torch.allclose(next_state(process, x, x0, t, s, "jump", None), process.noised(x0, n, s), atol=1e-6)
    assert torch.allclose(next_state(process, x, x0, t, s, "renoise", fresh), process.noised(x0, fresh, s))
    for eta, like in ((0.0, n), (1.0, fresh)):
        state = next_state(process, x, x0, t, s, "cps", fresh, eta)
        assert torch.allclose(state, process.noised(x0, like, s), atol=1e-6)


def test_real_samples_have_the_tokens_that_were_asked_for():
    tokens = torch.tensor([[1], [1], [2]])
    sampler = Reals(torch.tensor([[0.0, 1.0], [0.0, 2.0], [5.0, 5.0]]), tokens)
    asked = torch.tensor([[2], [1]] * 20)
    x = sampler.sample(torch.zeros(40, 2), Condition.of_tokens(asked), torch.Generator().manual_seed(0)).x
    assert (x[::2] == 5).all()
    assert set(x[1::2, 1].tolist()) == {1.0, 2.0}


def test_unknown_kinds_of_samplers_are_named():
    with pytest.raises(ArtifactError, match=r"no sampler is of kind 'nothing'.*few-step"):
        Sampler.of_kind("nothing")
