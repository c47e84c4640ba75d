"""Forward processes: conversions round-trip, and the three are one process in other clothes."""

from __future__ import annotations

import pytest
import torch

from kdbench.tracks.diffusion.processes import Edm, Flow, Process, Vp, process_from, spread

PROCESSES = [Edm(), Edm(data_std=1.4, sigma_max=80.0), Flow(), Flow(shift=3.0), Vp(), Vp(beta_max=12.0)]
every = pytest.mark.parametrize("process", PROCESSES, ids=lambda p: f"{p.name}{PROCESSES.index(p)}")


def case(process: Process, dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Clean samples, noise and times of the whole range, without a time where nothing is left of the sample."""
    g = torch.Generator().manual_seed(0)
    x0, noise = torch.randn(2, 7, 1, 3, 3, generator=g, dtype=torch.float64).to(dtype)
    t = torch.linspace(0, 1, 7, dtype=torch.float64).mul(0.95) * (process.t_max - process.t_min) + process.t_min
    return x0, noise, t.to(dtype)


@every
def test_conversions_round_trip(process):
    x0, noise, t = case(process)
    x = process.noised(x0, noise, t)
    close = {"rtol": 0, "atol": 1e-6}
    torch.testing.assert_close(process.x0_from_noise(x, noise, t), x0, **close)
    torch.testing.assert_close(process.noise_from_x0(x, x0, t), noise, **close)
    velocity = process.velocity_from_x0(x, x0, t)
    torch.testing.assert_close(velocity, noise - x0, **close)
    torch.testing.assert_close(process.x0_from_velocity(x, velocity, t), x0, **close)
    score = process.score_from_x0(x, x0, t)  # of a single point: -noise / sigma
    torch.testing.assert_close(score, -noise / spread(process.sigma(t), x), rtol=1e-6, atol=1e-6)


@every
def test_round_trip_in_single_precision(process):
    x0, noise, t = case(process, torch.float32)
    x = process.noised(x0, noise, t)
    assert x.dtype == torch.float32
    size = 1 + float(process.level(t).max())  # what is small beside the noise loses as many digits
    torch.testing.assert_close(process.x0_from_noise(x, noise, t), x0, rtol=0, atol=1e-6 * size)


@every
def test_level_and_time_are_inverse(process):
    _, _, t = case(process)
    torch.testing.assert_close(process.time(process.level(t)), t, rtol=1e-9, atol=1e-12)
    assert (process.level(t).diff() > 0).all()


@every
def test_jump_keeps_sample_and_noise(process):
    x0, noise, t = case(process)
    x, s = process.noised(x0, noise, t), 0.4 * t
    torch.testing.assert_close(process.jump(x, x0, t, s), process.noised(x0, noise, s), rtol=0, atol=1e-9)
    torch.testing.assert_close(process.jump(x, x0, t, 0.0), x0, rtol=0, atol=1e-9)


@every
def test_diffusing_on_arrives_at_the_process(process):
    """Linear in the sample and in both noises: the coefficients are those of one noising to the later time."""
    one, zero = torch.ones(7, 1), torch.zeros(7, 1)
    _, _, t = case(process)
    s = 0.3 * t
    sample = process.diffuse(process.noised(one, zero, s), zero, s, t)
    old = process.diffuse(process.noised(zero, one, s), zero, s, t)
    new = process.diffuse(zero, one, s, t)
    torch.testing.assert_close(sample[:, 0].double(), process.alpha(t), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close((old**2 + new**2)[:, 0].double(), process.sigma(t) ** 2, rtol=1e-5, atol=1e-6)


def test_processes_are_one_seen_through_a_scaling():
    x0, noise, _ = case(Edm())
    level = torch.linspace(0.05, 8, 7, dtype=torch.float64)
    wanted = Edm().noised(x0, noise, level)
    for process in PROCESSES:
        t = process.time(level)
        x = process.noised(x0, noise, t)
        torch.testing.assert_close(x / spread(process.alpha(t), x), wanted, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(Vp().alpha(level / 8) ** 2 + Vp().sigma(level / 8) ** 2, torch.ones(7).double())


@every
@pytest.mark.parametrize("steps", [1, 2, 9])
def test_grids_decrease_to_the_clean_time(process, steps):
    for start in (None, 0.5 * process.t_max):
        times = process.grid(steps, start)
        assert len(times) == steps + 1
        assert float(times[0]) == pytest.approx(process.t_max if start is None else start, rel=1e-5)
        assert float(times[-1]) == 0
        assert (times.diff() < 0).all()


@every
def test_training_times_are_within_the_range(process):
    times = process.training_times(4000, torch.Generator().manual_seed(0))
    assert times.shape == (4000,)
    assert times.min() >= process.t_min - 1e-7
    assert times.max() <= process.t_max + 1e-7
    assert times.unique().numel() > 2000
    assert torch.equal(times, process.training_times(4000, torch.Generator().manual_seed(0)))


def test_denoising_weights():
    x0, noise, t = case(Flow())
    guess = x0 + 0.1 * noise**2
    x = Flow().noised(x0, noise, t)
    by_velocity = (Flow().velocity_from_x0(x, guess, t) - (noise - x0)).square().flatten(1).sum(1)
    by_sample = Flow().denoising_weight(t) * (guess - x0).square().flatten(1).sum(1)
    torch.testing.assert_close(by_sample, by_velocity, rtol=1e-8, atol=1e-8)
    edm, s = Edm(data_std=0.7), torch.tensor([0.1, 1.0, 9.0])
    out = s * 0.7 / (s**2 + 0.7**2).sqrt()  # c_out of the preconditioning: the weight makes all levels equal
    torch.testing.assert_close(edm.denoising_weight(s) * out**2, torch.ones(3))
    weight = Vp().denoising_weight(Vp().time(torch.tensor([0.1, 1.0, 2.0])))
    torch.testing.assert_close(weight, torch.tensor([5.0, 1.0, 0.25]), rtol=1e-4, atol=1e-4)


def test_prior_is_noise_alone():
    _, noise, _ = case(Edm())
    torch.testing.assert_close(Edm().prior(noise), 20.0 * noise)
    torch.testing.assert_close(Flow().prior(noise), noise)
    torch.testing.assert_close(Edm().prior(noise, 2.5), 2.5 * noise)


@every
def test_state_makes_the_same_process(process):
    assert process_from(process.state()) == process
