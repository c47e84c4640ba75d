"""Flow maps of teachers in closed form: identities, derivatives in one argument alone, directions."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from kdbench.tracks.diffusion.blocks.flowmap import (
    along,
    correction_loss,
    decay,
    line_limits,
    line_velocity,
    map_residual,
    mean_velocity_loss,
    on_line,
    own_state,
    prediction_loss,
    rms,
)
from kdbench.tracks.diffusion.conditions import Condition
from kdbench.tracks.diffusion.networks.base import Denoiser
from kdbench.tracks.diffusion.networks.gmm import Mixture
from kdbench.tracks.diffusion.processes import Edm, Flow, Vp, spread

MEAN, STD = torch.tensor([1.0, -0.5], dtype=torch.float64), 0.3
"""Of the Gaussian whose flow map is known in closed form."""


class Exact(Denoiser):
    """The denoiser of a mixture."""

    def __init__(self, process, mixture):
        super().__init__()
        self.process, self.mixture = process, mixture

    def denoise(self, x, t, cond, features):
        return self.mixture.denoise(x, self.process.alpha(t), self.process.sigma(t))


GAUSSIAN = Mixture([MEAN.tolist()], STD)


def std_at(t):
    return ((1 - t) ** 2 * STD**2 + t**2).sqrt()


def true_map(z, d):
    """F(z, d) of the Gaussian: a trajectory keeps its place in units of the standard deviation."""
    d = d[:, None]
    return (d * MEAN + std_at(1 - d) * z - z) / d


def noise(rows=6, seed=0):
    return torch.randn(rows, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def velocity(x, t, process=None):
    """Towards the data."""
    return -line_velocity(Exact(process or Flow(), GAUSSIAN), x, t, Condition.none(len(x)))


def test_the_true_map_obeys_the_identity():
    z, d = noise(), torch.tensor([0.1, 0.3, 0.5, 0.7, 0.9, 0.97], dtype=torch.float64)
    value, slope = along(lambda d: true_map(z, d), (d,), (torch.ones_like(d),))
    u = velocity(z + d[:, None] * value, 1 - d)
    torch.testing.assert_close(map_residual(value, slope, u, d), torch.zeros_like(z), atol=1e-12, rtol=0)
    assert map_residual(value, -slope, u, d).abs().max() > 0.1
    assert map_residual(value, slope, -u, d).abs().max() > 0.1
    assert map_residual(value, slope, velocity(z + d[:, None] * value, d), d).abs().max() > 0.1


class Student(nn.Module):
    """A small network of noise and duration."""

    def __init__(self):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.net = nn.Sequential(nn.Linear(3, 16), nn.Tanh(), nn.Linear(16, 2)).double()

    def forward(self, z, d):
        return self.net(torch.cat([z, d[:, None]], 1))


def test_the_derivative_is_in_the_duration_alone_and_the_value_keeps_its_graph():
    student, z = Student(), noise()
    d = torch.linspace(0.1, 0.9, 6, dtype=torch.float64)
    value, slope = along(lambda d: student(z, d), (d,), (torch.ones_like(d),))
    step = 1e-6
    with torch.no_grad():
        finite = (student(z, d + step) - student(z, d - step)) / (2 * step)
    torch.testing.assert_close(slope, finite, atol=1e-8, rtol=0)
    assert not slope.requires_grad
    torch.testing.assert_close(value, student(z, d))
    value.sum().backward()
    assert all(parameter.grad is not None for parameter in student.parameters())


@pytest.mark.parametrize("power", [0.0, 0.5, 1.0])
def test_the_gradient_of_the_prediction_loss(power):
    """w 2 D / values: down the residual, whose slope and velocity are constants."""
    student, z = Student(), noise()
    d = torch.linspace(0.1, 0.9, 6, dtype=torch.float64)
    value, slope = along(lambda d: student(z, d), (d,), (torch.ones_like(d),))
    u = velocity(z + d[:, None] * value.detach(), 1 - d)
    residual = map_residual(value, slope, u, d)
    (found,) = torch.autograd.grad(prediction_loss(value, residual, power), value)
    weight = (residual.pow(2).mean(1, keepdim=True) + 1e-3) ** -power
    torch.testing.assert_close(found, weight.detach() * 2 * residual.detach() / residual.numel())
    torch.testing.assert_close(decay(residual, power), weight[:, 0].detach())


def test_the_correction_moves_samples_towards_the_teacher():
    """Of students with the right spread in the wrong place descent moves the place, and by the size asked for."""
    z, seed = noise(400), torch.Generator().manual_seed(3)
    shift = torch.tensor([0.6, -0.2], dtype=torch.float64)
    value = (MEAN + shift + STD * z - z).requires_grad_()
    r = torch.full((400,), 0.6, dtype=torch.float64)
    state = on_line((z + value).detach(), torch.randn(z.shape, dtype=torch.float64, generator=seed), r)
    own = -line_velocity(Exact(Flow(), Mixture([(MEAN + shift).tolist()], STD)), state, r, Condition.none(400))
    size = torch.tensor(0.25, dtype=torch.float64)
    loss = correction_loss(value, own, velocity(state, r), size)
    (found,) = torch.autograd.grad(loss, value)
    step = -found.mean(0)
    assert torch.nn.functional.cosine_similarity(step, -shift, dim=0) > 0.99
    assert float(rms(found * value.numel())) == pytest.approx(0.25, rel=0.01)
    same = correction_loss(value, own, own, size)
    (none,) = torch.autograd.grad(same, value)
    assert none.abs().max() == 0


@pytest.mark.parametrize("process", [Edm(sigma_min=0.02, sigma_max=80.0), Vp()], ids=lambda process: process.name)
def test_the_line_of_a_teacher_of_any_process(process):
    mixture = Mixture([[1.0, 0.0], [-1.0, 0.5]], [0.3, 0.2])
    t = torch.tensor([0.03, 0.2, 0.5, 0.8, 0.95, 1.0], dtype=torch.float64)
    x = noise()
    cond = Condition.none(len(x))
    wanted = line_velocity(Exact(Flow(), mixture), x, t, cond)
    found = line_velocity(Exact(process, mixture), x, t, cond)
    torch.testing.assert_close(found[:-1], wanted[:-1], atol=1e-9, rtol=0)
    torch.testing.assert_close(found[-1], wanted[-1], atol=0.05, rtol=0)  # the prior of the process is not quite pure
    least, most = line_limits(process)
    assert 0 < least < most < 1


def test_states_beyond_the_noisiest_level_have_that_level():
    process, noisy = Edm(sigma_max=4.0), noise()
    own, t = own_state(process, noisy, torch.ones(6, dtype=torch.float64))
    torch.testing.assert_close(t, torch.full((6,), 4.0, dtype=torch.float64))
    torch.testing.assert_close(own, 4 * noisy)


def test_guidance_of_the_velocity():
    mixture = Mixture([[1.0, 0.0], [-1.0, 0.5]], [0.3, 0.2], labels=[1, 2])

    class Classes(Exact):
        def denoise(self, x, t, cond, features):
            return self.mixture.denoise(x, self.process.alpha(t), self.process.sigma(t), cond.tokens[:, 0])

    teacher, x, t = Classes(Flow(), mixture), noise(), torch.full((6,), 0.5, dtype=torch.float64)
    cond = Condition.of_tokens(torch.tensor([1, 2, 1, 2, 1, 2]))
    asked, free = (line_velocity(teacher, x, t, part) for part in (cond, cond.null()))
    torch.testing.assert_close(line_velocity(teacher, x, t, cond, 2.5), free + 2.5 * (asked - free))


def test_mean_velocities_of_the_gaussian():
    """m(x, t, r) = (x - x_r) / (t - r) has no loss; other tangents or a wrong sign have one."""
    t = torch.tensor([0.3, 0.5, 0.6, 0.8, 0.9, 1.0], dtype=torch.float64)
    r = torch.tensor([0.1, 0.0, 0.5, 0.3, 0.05, 0.0], dtype=torch.float64)
    x = noise(seed=4)

    def mean(x, t, r):
        t, r = t[:, None], r[:, None]
        place = (x - (1 - t) * MEAN) / std_at(t)
        return (x - (1 - r) * MEAN - std_at(r) * place) / (t - r)

    v = -velocity(x, t)
    loss, residual = mean_velocity_loss(mean, x, t, r, v)
    assert residual.abs().max() < 1e-11
    assert float(loss) < 1e-18
    _, wrong = mean_velocity_loss(lambda x, t, r: mean(x, t, r.detach() * 0 + 0.02), x, t, r, v)
    assert wrong.abs().max() > 0.01
    _, reverse = mean_velocity_loss(mean, x, t, r, -v)
    assert reverse.abs().max() > 0.1
    jumped = x - spread(t - r, x) * mean(x, t, r)
    again = (jumped - spread(1 - r, x) * MEAN) / std_at(r)[:, None]
    torch.testing.assert_close(again, (x - spread(1 - t, x) * MEAN) / std_at(t)[:, None])
