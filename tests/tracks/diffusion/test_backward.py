"""Simulated inference: training inputs are states of the generator's own sampling."""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch

from kdbench.tracks.diffusion.blocks.backward import generated, roll, student_times
from kdbench.tracks.diffusion.conditions import Condition
from kdbench.tracks.diffusion.processes import Edm, Flow
from kdbench.tracks.diffusion.samplers.fewstep import FewStep
from tests.helpers.denoisers import SmallDenoiser

TIMES = [2.0, 1.0, 0.4]


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def inputs(count: int = 5):
    return torch.randn(count, 2, generator=rng(7)), Condition.of_tokens(torch.arange(count) % 3 + 1)


def test_times_are_even_places_of_the_grid():
    assert student_times(Flow(), 4) == pytest.approx([1.0, 0.75, 0.5, 0.25])
    times = student_times(Edm(), 3, 2.5)
    assert times[0] == pytest.approx(2.5)
    assert times == sorted(times, reverse=True)
    assert times[-1] > 5 * Edm().t_min  # the clean end is no step
    assert student_times(Edm(), 1, 2.5) == times[:1]


@pytest.mark.parametrize(("mode", "eta"), [("renoise", 0.0), ("jump", 0.0), ("cps", 0.7)])
def test_it_reaches_the_states_of_the_sampler(mode, eta):
    network = SmallDenoiser()
    noise, cond = inputs()
    with torch.no_grad():
        x, states = FewStep(network, TIMES, mode, eta=eta).draw(noise, cond, rng())
    for stop in range(3):
        reached = roll(network, noise, cond, TIMES, stop, rng(), mode=mode, eta=eta)
        torch.testing.assert_close(reached.x, states[stop])
        torch.testing.assert_close(reached.t, torch.full((5,), TIMES[stop]))
        assert reached.step.tolist() == [stop] * 5
    last, _ = generated(network, noise, cond, TIMES, rng(), stop=2, mode=mode, eta=eta)
    torch.testing.assert_close(last, x)


def test_each_row_may_stop_at_a_step_of_its_own():
    network = SmallDenoiser()
    noise, cond = inputs()
    stops = torch.tensor([2, 0, 1, 2, 0])
    reached = roll(network, noise, cond, TIMES, stops, rng())
    for stop in range(3):
        same = roll(network, noise, cond, TIMES, stop, rng())
        assert torch.equal(reached.x[stops == stop], same.x[stops == stop])
    assert reached.t.tolist() == pytest.approx([0.4, 2.0, 1.0, 0.4, 2.0])


def test_only_the_last_call_has_a_gradient():
    network = SmallDenoiser()
    noise, cond = inputs()
    x0, reached = generated(network, noise.requires_grad_(True), cond, TIMES, rng(), stop=2)
    assert not reached.x.requires_grad
    (through,) = torch.autograd.grad(x0.sum(), network.last.weight)
    alone = deepcopy(network)
    alone(reached.x, 0.4, cond).sum().backward()
    torch.testing.assert_close(through, alone.last.weight.grad)
    assert noise.grad is None


def test_the_step_is_drawn_uniformly_and_one_step_draws_nothing():
    network = SmallDenoiser()
    noise, cond = inputs(1)
    generator = rng()
    steps = [int(generated(network, noise, cond, TIMES, generator)[1].step) for _ in range(300)]
    assert all(70 < steps.count(step) < 130 for step in range(3))
    generator = rng()
    generated(network, noise, cond, TIMES[:1], generator)
    assert torch.equal(generator.get_state(), rng().get_state())


def test_experts_make_their_own_steps():
    first, second = SmallDenoiser(seed=1), SmallDenoiser(seed=2)
    noise, cond = inputs()
    x0, reached = generated([first, second], noise, cond, [2.0, 1.0], rng(), stop=1)
    same = roll(first, noise, cond, [2.0, 1.0], 1, rng())
    assert torch.equal(reached.x, same.x)
    torch.testing.assert_close(x0, second(reached.x, 1.0, cond))


@pytest.mark.parametrize("stop", [3, -1, torch.tensor([0, 1, 2, 3, 0])])
def test_stops_that_are_no_steps(stop):
    noise, cond = inputs()
    with pytest.raises(ValueError, match="cannot stop"):
        roll(SmallDenoiser(), noise, cond, TIMES, stop, rng())
