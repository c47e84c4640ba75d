"""Segmented consistency for several numbers of steps: one adapter, its stages, its samplers."""

from __future__ import annotations

from collections import Counter
from copy import deepcopy

import pytest
import torch

from kdbench.errors import UsageError
from kdbench.tracks.diffusion.batches import Batch
from kdbench.tracks.diffusion.blocks.anysteps import AnySteps, StepAware
from kdbench.tracks.diffusion.blocks.segmented import Segmented, stage_counts
from kdbench.tracks.diffusion.blocks.stages import hinge, late_sample, rewards_of
from kdbench.tracks.diffusion.conditions import Condition
from kdbench.tracks.diffusion.networks.build import build, load_denoiser, save_denoiser
from kdbench.tracks.diffusion.processes import Flow
from kdbench.tracks.diffusion.samplers.base import Sampler
from kdbench.tracks.diffusion.spec import Mlp
from tests.helpers.exact_task import CLASSES, exact_task


def base():
    torch.manual_seed(0)
    model = build(Mlp(width=8, depth=2), (2,), (3,), process=Flow())
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.2 * torch.randn_like(parameter)
    return model


def student(trained=False, aware=True):
    made = StepAware.around(base(), 4, 4, torch.Generator().manual_seed(1), aware=aware)
    if trained:
        torch.manual_seed(2)
        with torch.no_grad():
            for parameter in made.parameters():
                if parameter.requires_grad:
                    parameter += 0.3 * torch.randn_like(parameter)
    return made


def batch(count=8):
    generator = torch.Generator().manual_seed(3)
    x0, _ = CLASSES.sample(count, generator)
    return Batch(x0, Condition.of_tokens(torch.arange(count) % 2 + 1), torch.arange(count))


@pytest.fixture
def task(tmp_path):
    return exact_task(tmp_path)


def test_a_new_adapter_changes_nothing_and_is_all_that_is_trained():
    plain, made = base(), student()
    x, t, cond = torch.randn(4, 2), torch.tensor([0.2, 0.4, 0.8, 1.0]), batch(4).cond
    for steps in (1, 8):
        assert torch.equal(made(x, t, cond, steps=steps), plain(x, t, cond))
    trained = {name for name, parameter in made.named_parameters() if parameter.requires_grad}
    assert all("adapters" in name or "conditioning.maps.1" in name for name in trained)
    assert any("conditioning.maps.1" in name for name in trained)
    ((made(x, t, cond, steps=8) - x) ** 2).mean().backward()
    assert all(p.grad is None for p in made.parameters() if not p.requires_grad)


def test_the_number_of_steps_is_read_where_it_is_asked_for():
    x, t, cond = torch.randn(4, 2), torch.tensor([0.2, 0.4, 0.8, 1.0]), batch(4).cond
    made, blind = student(trained=True), student(trained=True, aware=False)
    assert not torch.equal(made(x, t, cond, steps=1), made(x, t, cond, steps=4))
    assert torch.equal(made.at(4)(x, t, cond), made(x, t, cond, steps=4))
    assert torch.equal(blind(x, t, cond, steps=1), blind(x, t, cond, steps=4))
    out, maps = made(x, t, cond, features=True)
    assert torch.equal(out, made(x, t, cond))
    assert set(maps) == set(made.channels)


def test_samplers_of_every_number_of_steps(tmp_path, task):
    made = student(trained=True)
    grid = Flow().grid(8).tolist()
    sampler = AnySteps({1: made, 2: made, 4: made}, grid, 2)
    noise, cond = torch.randn(5, 2), batch(5).cond
    assert sampler.times == [1.0, 0.5]
    assert sampler.at(4).times == [1.0, 0.75, 0.5, 0.25]
    found = sampler.sample(noise, cond, torch.Generator())
    assert found.nfe == 2
    middle = Flow().jump(noise, made(noise, 1.0, cond, steps=2), 1.0, 0.5)
    torch.testing.assert_close(found.x, made(middle, 0.5, cond, steps=2))
    save_denoiser(made, tmp_path / "one")
    assert torch.equal(load_denoiser(tmp_path / "one")(noise, 1.0, cond), made(noise, 1.0, cond))
    other = student(trained=True, aware=False)
    mixed = AnySteps({1: made, 2: other, 4: made}, grid, 4)
    task.place = lambda network: network
    mixed.save(tmp_path)
    again = Sampler.of_kind("any-steps").load(tmp_path, task)
    assert again.members[1] is again.members[4]
    for steps in (1, 2, 4):
        one, two = (kept.at(steps).sample(noise, cond, torch.Generator()).x for kept in (mixed, again))
        assert torch.equal(one, two)
    with pytest.raises(UsageError, match="not for 8"):
        sampler.at(8)
    with pytest.raises(UsageError, match="no multiple of 3"):
        AnySteps({3: made}, grid, 3)


def test_batches_are_shared_between_the_stage_and_those_before(task):
    stage = Segmented(task, student(), [8, 4, 2], grid=8, name="a", own=0.5)
    counts = Counter(stage.count() for _ in range(2000))
    assert 0.45 < counts[2] / 2000 < 0.55
    assert 0.2 < counts[8] / 2000 < 0.3
    alone = Segmented(task, student(), [4], grid=8, name="a")
    assert {alone.count() for _ in range(10)} == {4}


def test_the_loss_of_a_stage_trains_the_student_and_its_target_follows(task):
    made = student(trained=True)
    stage = Segmented(task, made, [4], grid=8, name="a", half_life=8.0)
    _, fake, true = stage(made, batch())
    assert fake.shape == true.shape == (8, 2)
    assert fake.requires_grad
    assert not true.requires_grad
    before = deepcopy(stage.target.network.state_dict())
    optimizer = torch.optim.Adam([p for p in made.parameters() if p.requires_grad], lr=0.02)
    losses = []
    for step in range(1, 60):
        loss, _, _ = stage(made, batch())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        stage.update(step)
        losses.append(float(loss.detach()))
    assert sum(losses[-10:]) < 0.7 * sum(losses[:10])
    after, now = stage.target.network.state_dict(), made.state_dict()
    name = next(name for name, p in made.named_parameters() if p.requires_grad)
    assert not torch.equal(after[name], before[name])
    assert not torch.equal(after[name], now[name])
    assert all(p.grad is None for p in stage.target.network.parameters())


def test_the_samples_that_jumps_imply_are_those_that_were_predicted(task):
    made = student(trained=True)
    stage = Segmented(task, made, [1], grid=4, name="a", end="bound")
    state = stage.rng.get_state()
    _, fake, _ = stage(made, batch())
    stage.rng.set_state(state)
    steps = stage.cuts[1].draw(8, stage.rng, "bound")
    x = Flow().noised(batch().x, torch.randn(8, 2, generator=stage.rng), steps.t)
    torch.testing.assert_close(fake, made(x, steps.t, batch().cond, steps=1), rtol=1e-4, atol=1e-5)


def test_stages_halve_down_to_one():
    assert stage_counts(8) == [8, 4, 2, 1]
    assert stage_counts(1) == [1]
    for wrong in (0, 6):
        with pytest.raises(UsageError, match="power of 2"):
            stage_counts(wrong)


def test_late_samples_are_those_of_the_second_half_of_a_chain():
    made, noise, cond = student(trained=True), torch.randn(3, 2), batch(3).cond
    grid, rng = Flow().grid(4).tolist(), torch.Generator().manual_seed(0)
    whole = AnySteps({4: made}, grid, 4)
    states = whole.sample(noise, cond, torch.Generator()).trajectory
    late = [made(states[k], grid[k], cond, steps=4).detach() for k in (2, 3)]
    seen = set()
    for _ in range(20):
        x = late_sample(made, noise, cond, {4: whole.times}, rng)
        assert x.requires_grad
        matches = [torch.allclose(x, one, atol=1e-5) for one in late]
        assert any(matches)
        seen.add(matches.index(True))
    assert seen == {0, 1}
    once = late_sample(made, noise, cond, {1: grid[:1]}, rng)
    torch.testing.assert_close(once, made(noise, 1.0, cond, steps=1))


def test_rewards_above_the_threshold_push_no_further(task):
    reward = torch.tensor([0.2, 0.9], requires_grad=True)
    value = hinge(reward, 0.5)
    value.backward()
    assert value.item() == pytest.approx(0.15)
    assert reward.grad.tolist() == [-0.5, 0.0]
    with pytest.raises(UsageError, match="no reward"):
        rewards_of(task)
