"""Consistency functions on mixtures in closed form: boundaries, segments, zero loss for a perfect function."""

from __future__ import annotations

from functools import partial
from itertools import pairwise

import pytest
import torch

from kdbench.errors import UsageError
from kdbench.tracks.diffusion.blocks.consistency import (
    Segments,
    Steps,
    consistency_loss,
    distance,
    draw_pairs,
    implied_x0,
    jump,
    two_steps,
)
from kdbench.tracks.diffusion.networks.gmm import Mixture
from kdbench.tracks.diffusion.processes import Edm, Flow, Vp

PROCESSES = [Edm(sigma_min=0.05, sigma_max=5.0), Flow(), Vp()]
MIXTURE = Mixture([[1.0, 0.0], [-1.0, 0.5], [0.0, -1.0]], [0.3, 0.2, 0.4], [0.5, 0.3, 0.2])


@pytest.fixture(params=PROCESSES, ids=lambda process: process.name)
def process(request):
    return request.param


def teacher(process, x, t):
    return MIXTURE.denoise(x, process.alpha(t), process.sigma(t))


def noised(process, t, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x0, _ = MIXTURE.sample(len(t), generator, dtype=torch.float64)
    return process.noised(x0, torch.randn(len(t), 2, generator=generator, dtype=torch.float64), t)


def follower(process, times, end):
    """Predicts the x_0 along which one jump ends where the teacher's own steps of the grid do."""

    def predict(x, t):
        here = x
        for a, b in pairwise(times):
            rows = ((a <= t) & (b >= end))[:, None]
            there = process.jump(here, teacher(process, here, a.expand(len(x))), a, b)
            here = torch.where(rows, there, here)
        moves = t > end
        found = implied_x0(process, x, t, here, torch.where(moves, end, 0 * end))
        return torch.where(moves[:, None], found, x)

    return predict


def test_a_jump_to_its_own_time_changes_nothing(process):
    x, t = torch.randn(4, 2, dtype=torch.float64), torch.tensor([0.0, 0.1, 0.5, 1.0], dtype=torch.float64)

    def predict(x, times):
        assert (times > 0).all()
        return torch.full_like(x, 7.0)

    assert torch.equal(jump(predict, process, x, t, t), x)
    assert torch.isfinite(jump(predict, process, x, t, torch.zeros_like(t))).all()
    assert torch.equal(jump(predict, process, x, t, torch.zeros_like(t))[1:], torch.full((3, 2), 7.0).double())


def test_a_jump_along_the_true_sample_keeps_its_noise(process):
    x0, noise = torch.randn(2, 5, 3, dtype=torch.float64)
    t, s = torch.full((5,), 0.8, dtype=torch.float64), torch.linspace(0, 0.7, 5, dtype=torch.float64)
    found = jump(lambda x, times: x0, process, process.noised(x0, noise, t), t, s)
    torch.testing.assert_close(found, process.noised(x0, noise, s))


def test_the_implied_sample_is_the_one_that_was_jumped_along(process):
    x0, x = torch.randn(2, 5, 3, dtype=torch.float64)
    t, s = torch.full((5,), 0.9, dtype=torch.float64), torch.linspace(0, 0.7, 5, dtype=torch.float64)
    torch.testing.assert_close(implied_x0(process, x, t, process.jump(x, x0, t, s), s), x0)


@pytest.mark.parametrize("segments", [1, 2, 4])
@pytest.mark.parametrize("end", ["random", "bound"])
def test_a_function_that_follows_the_teacher_has_no_loss(process, segments, end):
    cut = Segments(process.grid(8).double(), segments)
    steps = cut.draw(64, torch.Generator().manual_seed(1), end)
    x = noised(process, steps.t)
    perfect = follower(process, cut.times, steps.end)
    losses, guess, goal = consistency_loss(perfect, perfect, partial(teacher, process), process, x, steps, metric="mse")
    assert losses.max() < 1e-18
    torch.testing.assert_close(guess, goal)
    if end == "bound" and segments == 1:
        assert (steps.end == 0).all()
    if cut.length > 1:  # the teacher's own jumps are not consistent
        own = partial(teacher, process)
        assert consistency_loss(own, own, own, process, x, steps, metric="mse")[0].max() > 1e-4


def test_a_gaussian_s_true_flow_is_consistent_up_to_the_teacher_s_step():
    """On N(m, v) the flow is m + (x - m) sqrt((v + s^2) / (v + t^2)); an Euler step is off by its square."""
    process, mean, variance = Edm(sigma_min=0.05, sigma_max=5.0), 0.7, 0.3**2

    def flow(end, x, t):
        there = mean + (x - mean) * ((variance + end**2) / (variance + t**2)).sqrt()[:, None]
        return implied_x0(process, x, t, there, end)

    def denoise(x, t):
        return mean + (x - mean) * (variance / (variance + t**2))[:, None]

    found = []
    for count in (16, 32, 64):
        times = process.grid(count).double()
        t, following = times[:-2], times[1:-1]
        steps = Steps(t, following, torch.zeros_like(t))
        x = mean + (variance + t**2).sqrt()[:, None]
        predict = partial(flow, steps.end)
        losses, _, _ = consistency_loss(predict, predict, denoise, process, x, steps, metric="mse")
        found.append(losses.max().sqrt())
    assert found[1] < found[0] / 3
    assert found[2] < found[1] / 3


def test_gradients_reach_the_student_alone(process):
    weights = torch.ones(3, dtype=torch.float64, requires_grad=True)
    cut = Segments(process.grid(8).double(), 2)
    steps = cut.draw(16, torch.Generator().manual_seed(1))
    predicts = [lambda x, t, w=w: w * teacher(process, x, t) + 0.1 * x for w in weights]
    losses, _, goal = consistency_loss(*predicts, process, noised(process, steps.t), steps)
    losses.mean().backward()
    assert weights.grad[0] != 0
    assert weights.grad[1:].tolist() == [0, 0]
    assert not goal.requires_grad


def test_ends_stay_in_the_segment_of_the_step(process):
    cut = Segments(process.grid(8), 4)
    generator = torch.Generator().manual_seed(0)
    steps = cut.draw(2000, generator)
    place = {float(time): number for number, time in enumerate(cut.times)}
    t, following, end = ([place[float(time)] for time in times] for times in (steps.t, steps.following, steps.end))
    assert {(a, b, c) for a, b, c in zip(t, following, end, strict=True)} == {
        (a, a + 1, c) for a in range(8) for c in range(a + 1, 2 * (a // 2) + 3)
    }
    bound = cut.draw(2000, generator, "bound")
    assert {(place[float(a)], place[float(b)]) for a, b in zip(bound.t, bound.end, strict=True)} == {
        (a, 2 * (a // 2) + 2) for a in range(8)
    }
    assert torch.equal(cut.bounds, cut.times[::2])
    assert Segments(process.grid(8), 1).bound(torch.arange(8)).tolist() == [8] * 8
    with pytest.raises(UsageError, match="8 steps cannot be cut into 3"):
        Segments(process.grid(8), 3)


def test_one_step_to_the_target_of_progressive_distillation_is_two_of_the_teacher(process):
    times = process.grid(8).double()
    steps = draw_pairs(times, 500, torch.Generator().manual_seed(3))
    places = {(float(a), float(b), float(c)) for a, b, c in zip(steps.t, steps.following, steps.end, strict=True)}
    assert places == {tuple(times[first : first + 3].tolist()) for first in (0, 2, 4, 6)}
    x = noised(process, steps.t)
    own = partial(teacher, process)
    reached = two_steps(own, process, x, steps)
    target = implied_x0(process, x, steps.t, reached, steps.end)
    torch.testing.assert_close(process.jump(x, target, steps.t, steps.end), reached)
    by_hand = process.jump(x, own(x, steps.t), steps.t, steps.following)
    by_hand = process.jump(by_hand, own(by_hand, steps.following), steps.following, steps.end)
    torch.testing.assert_close(reached, by_hand)
    assert (target - own(x, steps.t)).abs().max() > 1e-2


def test_the_distance_is_square_near_and_straight_far():
    a, zero = torch.tensor([[1e-6, 0.0], [5.0, -3.0]], dtype=torch.float64), torch.zeros(2, 2, dtype=torch.float64)
    near, far = distance(a, zero, "huber", 1e-2).tolist()
    assert near == pytest.approx((1e-6) ** 2 / 2 / 1e-2 / 2, rel=1e-3)
    assert far == pytest.approx(4.0 - 1e-2, abs=1e-4)
    assert distance(a, zero, "mse").tolist() == pytest.approx([5e-13, 17.0])
