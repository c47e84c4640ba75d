"""The signal of deterministic trajectories: DDIM of an exact teacher, and a student that learns it from itself."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import nn

from kdbench.tracks.diffusion.blocks.signal import (
    bootstrap_loss,
    boundary,
    signal_grid,
    signal_step,
    signal_target,
    signals,
)
from kdbench.tracks.diffusion.networks.gmm import Mixture
from kdbench.tracks.diffusion.processes import Edm, Flow, Vp

PROCESSES = [Edm(), Flow(), Vp()]
MIXTURE = Mixture([[1.0, 0.0], [-1.0, 0.5], [0.0, -1.0]], [0.3, 0.2, 0.4], [0.5, 0.3, 0.2])


@pytest.fixture(params=PROCESSES, ids=lambda process: process.name)
def process(request):
    return request.param


def exact(process):
    return lambda x, t: MIXTURE.denoise(x, process.alpha(t), process.sigma(t))


def noise(rows=5, seed=0):
    return torch.randn(rows, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_steps_of_the_signal_are_steps_of_ddim(process):
    e, times, teacher = noise(), signal_grid(process, 24).double(), exact(process)
    found = signals(teacher, process, e, times)
    x = process.noised(boundary(teacher, process, e), e, times[0])
    for y, (t, s) in zip(found[1:], pairwise(times), strict=True):
        ends = t.expand(len(x)), s.expand(len(x))
        x = process.jump(x, teacher(x, ends[0]), *ends)
        torch.testing.assert_close(process.noised(y, e, s), x, atol=1e-9, rtol=1e-9)


def test_the_grid_ends_where_teachers_are_known(process):
    times = signal_grid(process, 16)
    assert len(times) == 17
    assert float(times[0]) == pytest.approx(process.t_max)
    assert float(times[-1]) == pytest.approx(process.t_min)
    assert (times.diff() < 0).all()


def test_a_step_without_length_changes_nothing_and_one_to_the_end_is_the_prediction(process):
    y, x0 = noise(), noise(seed=1)
    torch.testing.assert_close(signal_step(process, y, x0, 0.4, 0.4), y)
    torch.testing.assert_close(signal_step(process, y, x0, 0.4, 0.0), x0)


def test_heun_is_of_second_order(process):
    """Half the step: half the error with the teacher's first prediction alone, a quarter with both."""
    e, teacher = noise(40), exact(process)
    top, end = process.time(1.0), process.time(0.3)

    def last(steps, heun):
        level = torch.linspace(0, 1, steps + 1, dtype=torch.float64)
        times = process.time(1.0 * (0.3 / 1.0) ** level)
        y = torch.zeros_like(e)
        for t, s in pairwise(times):
            ends = t.expand(len(e)), s.expand(len(e))
            y = signal_target(teacher, process, y, e, *ends, heun=heun)
        return y

    assert top > end
    true = last(256, True)
    for heun, factor in ((False, 2.0), (True, 4.0)):
        coarse, fine = ((last(steps, heun) - true).norm() for steps in (16, 32))
        assert coarse / fine == pytest.approx(factor, rel=0.25)


class Table(nn.Module):
    """A student that knows one value for each noise and each time of a grid."""

    def __init__(self, e, times):
        super().__init__()
        self.e, self.times = e, times
        self.values = nn.Parameter(torch.zeros(len(times), *e.shape, dtype=e.dtype))

    def forward(self, e, t):
        rows = (e[:, None] == self.e).all(2).long().argmax(1)
        return self.values[(t[:, None] == self.times).long().argmax(1), rows]


def drawn(times, count, seed):
    generator = torch.Generator().manual_seed(seed)
    stride = torch.randint(1, 3, (count,), generator=generator)
    return (torch.rand(count, generator=generator) * (len(times) - stride)).long(), stride


def test_the_true_signal_has_no_loss_and_its_gradient_ends_at_the_guess(process):
    e, times, teacher = noise(8), signal_grid(process, 8).double(), exact(process)
    student = Table(e, times)
    student.values.data = torch.stack(signals(teacher, process, e, times))
    one = torch.ones(8, dtype=torch.int64)
    place = torch.arange(8)
    assert float(bootstrap_loss(student, teacher, process, e, times, place, one).detach().max()) < 1e-18
    student.values.data[3, 3] += 1  # the target of place 3, and the guess of place 2
    e3 = e[3:4].expand(8, -1)
    loss = bootstrap_loss(student, teacher, process, e3, times, place, one)
    wrong = loss > 1e-4
    assert wrong.tolist() == [False, False, True, True, False, False, False, False]
    loss.sum().backward()
    touched = student.values.grad.abs().sum((1, 2)) > 1e-6
    assert touched.nonzero().flatten().tolist() == [3, 4]  # each the guess of the place before it, never its start


def test_the_error_is_divided_by_the_square_of_the_step(process):
    e, times, teacher = noise(4), signal_grid(process, 8).double(), exact(process)
    student = lambda e, t: torch.zeros_like(e)  # noqa: E731
    place = torch.full((4,), 2)
    for stride in (1, 4):
        steps = torch.full((4,), stride)
        ends = times[place], times[place + steps]
        goal = signal_target(teacher, process, torch.zeros_like(e), e, *ends)
        wanted = goal.pow(2).mean(1) / (stride / 8) ** 2
        torch.testing.assert_close(bootstrap_loss(student, teacher, process, e, times, place, steps), wanted)


def test_bootstrapping_learns_the_trajectory_without_any_sample():
    """A table that starts at 0 learns what DDIM integrates, from boundary and its own values alone."""
    process = Edm(sigma_max=5.0)
    e, times, teacher = noise(6), signal_grid(process, 6).double(), exact(process)
    student = Table(e, times)
    solver = torch.optim.Adam(student.parameters(), lr=0.05)
    goal = boundary(teacher, process, e)
    for step in range(400):
        solver.param_groups[0]["lr"] = 0.05 * (1 - step / 400)
        rows = torch.arange(6).repeat(6)
        place = torch.arange(6).repeat_interleave(6)
        loss = bootstrap_loss(student, teacher, process, e[rows], times, place, torch.ones_like(place)).mean()
        loss = loss + (student(e, times[:1].expand(6)) - goal).pow(2).mean()
        solver.zero_grad()
        loss.backward()
        solver.step()
    true = torch.stack(signals(teacher, process, e, times))
    assert (student.values - true).abs().max() < 0.02
    assert true[-1].abs().mean() > 0.3
