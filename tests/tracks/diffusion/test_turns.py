"""Turns of critic and generator: how many, in which order, with what, and who pays."""

from __future__ import annotations

from itertools import combinations

import pytest
import torch

from kdbench.errors import Diverged, OverBudget, UsageError
from kdbench.tracks.diffusion.blocks.critic import Critic
from kdbench.tracks.diffusion.blocks.ema import HalfLife
from kdbench.tracks.diffusion.blocks.turns import Notes, alternate, generator_updates, window
from tests.helpers.denoisers import FakeTask, SmallDenoiser


def play(task, *, ratio=2, generator=None, critic=None, **rest):
    """Train with recorded losses; what was called, in order."""
    generator, critic = generator or SmallDenoiser(), critic or Critic(SmallDenoiser(seed=1), lr=1e-2)
    calls = []

    def critic_loss(draw, real):
        calls.append(("critic", draw, real, [p.detach().clone() for p in generator.parameters()]))
        with torch.no_grad():
            x = generator(draw.noise, 1.0, draw.cond)
        return {"score": (critic.network(x, 1.0, draw.cond) - x).square().mean()}

    def generator_loss(model, draw, real):
        calls.append(("generator", draw, real, [p.detach().clone() for p in model.parameters()]))
        assert model is generator
        return {"dmd": critic.network(model(draw.noise, 1.0, draw.cond), 1.0, draw.cond).square().mean()}

    result = alternate(task, generator, critic, critic_loss, generator_loss, ratio=ratio, lr=1e-2, **rest)
    return result, generator, critic, calls


def test_the_critic_moves_so_many_times_before_each_update_of_the_generator():
    task = FakeTask(steps=13)
    result, _, critic, calls = play(task, ratio=2)
    assert [name for name, *_ in calls] == ["critic", "critic", "generator"] * 4
    assert result.steps == 4
    assert critic.updates == 8
    assert task.budget.report()["steps"] == 12
    assert task.budget.report()["critic_updates"] == 8
    assert task.budget.report()["samples"] == 12 * 4


def test_a_budget_that_is_too_small_for_a_whole_turn_has_a_shorter_one(caplog):
    task = FakeTask(steps=3)
    result, _, critic, calls = play(task, ratio=5)
    assert [name for name, *_ in calls] == ["critic", "critic", "generator"]
    assert (result.steps, critic.updates, task.budget.spent["steps"]) == (1, 2, 3)
    assert "too few" in caplog.text


def test_updates_of_the_generator_may_be_what_is_counted():
    task = FakeTask(steps=30)
    result, _, critic, _ = play(task, ratio=5, updates=2)
    assert (result.steps, critic.updates, task.budget.spent["steps"]) == (2, 10, 12)


def test_the_generator_rests_in_the_turn_of_the_critic_and_the_other_way_round():
    task = FakeTask(steps=6)
    generator, critic = SmallDenoiser(), Critic(SmallDenoiser(seed=1), lr=1e-2)
    before = [p.detach().clone() for p in critic.network.parameters()]
    _, _, _, calls = play(task, ratio=2, generator=generator, critic=critic)
    first, _, third = calls[:3]
    assert all(torch.equal(a, b) for a, b in zip(first[3], third[3]))  # both turns of the critic left it alone
    assert not all(torch.equal(a, b) for a, b in zip(third[3], calls[3][3]))
    assert all(p.grad is None for p in critic.network.parameters())  # though the generator's loss goes through it
    assert not all(torch.equal(a, b) for a, b in zip(before, critic.network.parameters()))


def test_every_update_has_noise_and_data_of_its_own():
    task = FakeTask(steps=6)
    _, _, _, calls = play(task, ratio=2, real=True)
    noises = [draw.noise for _, draw, _, _ in calls]
    assert not any(torch.equal(a, b) for a, b in combinations(noises, 2))
    images = [real.x for _, _, real, _ in calls]
    assert not any(torch.equal(a, b) for a, b in combinations(images, 2))


def test_without_data_losses_get_none():
    _, _, _, calls = play(FakeTask(steps=3))
    assert [real for _, _, real, _ in calls] == [None] * 3


def test_what_it_refuses():
    with pytest.raises(OverBudget, match="one update"):
        play(FakeTask(steps=1), ratio=2)
    with pytest.raises(UsageError, match="at least once"):
        play(FakeTask(), ratio=0)
    with pytest.raises(UsageError, match="no critic"):
        alternate(FakeTask(), SmallDenoiser(), None, None, lambda model, draw, real: {}, ratio=1, lr=1e-3)
    with pytest.raises(UsageError, match="accumulate"):
        play(FakeTask(), accumulate=2)
    with pytest.raises(OverBudget):
        play(FakeTask(steps=5), ratio=2, updates=2)
    with pytest.raises(Diverged):
        alternate(
            FakeTask(),
            SmallDenoiser(),
            critic := Critic(SmallDenoiser(), lr=1e-2),
            lambda draw, real: {"score": critic.network(draw.noise, 1.0).sum() * float("inf")},
            lambda model, draw, real: {"dmd": model(draw.noise, 1.0).sum()},
            lr=1e-3,
        )
    assert generator_updates(FakeTask(steps=13), 5) == 2


def test_critic_losses_and_notes_are_logged():
    task, notes = FakeTask(steps=4), Notes()
    critic = Critic(SmallDenoiser(seed=1), lr=1e-2)

    def critic_loss(draw, real):
        notes.add(seen=float(critic.updates))
        return {"score": critic.network(draw.noise, 1.0, draw.cond).square().mean()}

    alternate(
        task,
        SmallDenoiser(),
        critic,
        critic_loss,
        lambda model, draw, real: {"dmd": model(draw.noise, 1.0).square().mean()},
        ratio=1,
        lr=1e-3,
        notes=notes,
        tag="one",
    )
    rows = [row for row in task.curve if "one/seen" in row]
    assert [row["one/seen"] for row in rows] == [0.0, 1.0]
    assert all("one/critic/score" in row for row in rows)
    assert notes.state_dict() == {"sums": {}, "counts": {}}


def test_a_generator_may_learn_alone():
    task, seen = FakeTask(steps=3), []

    def loss(model, draw, real):
        seen.append(real)
        return {"size": model(draw.noise, 1.0).square().mean()}

    result = alternate(task, SmallDenoiser(), None, None, loss, ratio=0, real=True, lr=1e-3)
    assert (result.steps, len(seen)) == (3, 3)
    assert all(batch is not None for batch in seen)
    assert "critic_updates" not in task.budget.report()


def test_notes_are_means_since_they_were_read():
    notes = Notes()
    notes.add(a=1.0, b=torch.tensor(4.0))
    notes.add(a=2.0)
    kept = notes.state_dict()
    assert notes.read() == {"a": 1.5, "b": 4.0}
    assert notes.read() == {}
    notes.load_state_dict(kept)
    assert notes.read() == {"a": 1.5, "b": 4.0}


def test_the_average_is_what_is_returned():
    _, generator, _, _ = play(FakeTask(steps=6), ema=None)
    result, other, _, _ = play(FakeTask(steps=6), ema=0.5)
    assert torch.equal(generator.first.weight, other.first.weight)
    assert not torch.equal(result.ema.first.weight, other.first.weight)
    model = SmallDenoiser()
    average = HalfLife(model, images=4, ramp=None)
    result, generator, _, _ = play(FakeTask(steps=6), generator=model, ema=average)
    assert result.ema is average.network
    assert average.seen == 2 * 4
    result, generator, _, _ = play(FakeTask(steps=6), ema=None)
    assert result.ema is generator


def test_an_average_forgets_the_first_weights_however_few_updates_there_are():
    assert window(0.99, 2000) == 0.99
    assert window(0.99, 80) == pytest.approx(0.875)
    assert window(0.99, 1) == 0.5
    assert window(0.3, 80) == 0.3
    assert window(0.99, 80) ** 80 < 1e-4


def test_the_rate_of_the_critic_may_be_given_with_the_others():
    critic = Critic(SmallDenoiser(seed=1), lr=1e-2)
    play(FakeTask(steps=3), critic=critic, critic_lr=0.0001)
    assert critic.optimizer.param_groups[0]["lr"] == 0.0001
