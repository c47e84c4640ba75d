"""DisBack: the recorded path, the way back, and the first critic."""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch

from kdbench.cache import Cache
from kdbench.training.loop import FitResult
from kdbench_methods.diffusion import diff_instruct, disback
from tests.helpers.denoisers import same_weights, smoke_task


@pytest.fixture
def make(tmp_path):
    cache = Cache(tmp_path / "cache")
    return lambda **changes: smoke_task("ring", tmp_path, cache, **changes)


def test_without_checkpoints_it_is_diff_instruct(make):
    """Bit for bit, where both have the same random numbers."""
    plain = diff_instruct.train(make(), diff_instruct.DiffInstructParams())
    none = disback.train(make(), disback.DisbackParams(checkpoints=0))
    some = disback.train(make(), disback.DisbackParams(checkpoints=2))
    assert same_weights(plain.experts[0], none.experts[0])
    assert not same_weights(plain.experts[0], some.experts[0])


def test_recording_leads_from_the_teacher_to_the_frozen_generator(make):
    task = make(limits={"steps": 400}, recipe={"batch_size": 64})
    generator = task.student()
    before = deepcopy(generator)
    path = disback.record(task, disback.DisbackParams(checkpoints=4, record=0.5, record_lr=1e-2), generator, 2.5)
    assert same_weights(generator, before)
    assert len(path) == 4
    assert (task.budget.spent["steps"], task.budget.spent["record_steps"]) == (200, 200)
    assert not any(parameter.requires_grad for parameter in path.parameters())
    draw = next(iter(task.draws(512)))
    with torch.no_grad():
        x = generator(task.process.prior(draw.noise, 2.5), 2.5, draw.cond)
        noised = x + 1.0 * torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
        errors = [float((net(noised, 1.0, draw.cond) - x).square().mean()) for net in (task.score_network(), *path)]
    assert errors[-1] < errors[1] < errors[0]  # the generator's samples are denoised better and better


def test_the_path_is_walked_back_to_the_teacher(make, monkeypatch):
    """Five checkpoints: F starts as the fifth; targets are the fourth to the first, and T, for equal shares."""
    task = make(limits={"steps": 60})
    path, seen = [], {}

    def record(*args):
        path.extend(torch.nn.ModuleList(task.score_network() for _ in range(5)).requires_grad_(False))
        for number, network in enumerate(path):
            next(network.parameters()).data.add_(number)
        return path

    def alternate(task, generator, critic, critic_loss, generator_loss, *, on_step, **rest):
        seen["first"] = deepcopy(critic.network)
        target, order = critic_loss.__self__.target, []
        for step in range(1, 31):
            order.append(target())
            on_step(step)
        seen["order"] = order
        return FitResult(30, 0.0, 0.0, generator)

    monkeypatch.setattr(disback, "record", record)
    monkeypatch.setattr(disback, "alternate", alternate)
    disback.train(task, disback.DisbackParams(checkpoints=5))
    assert same_weights(seen["first"], path[4])
    wanted = [path[3], path[2], path[1], path[0], task.teacher()]
    assert all(one is wanted[number // 6] for number, one in enumerate(seen["order"]))


def test_recording_is_charged_and_mismatches_are_measured(run):
    found = run("diffusion/disback", "ring")
    cost = found.outcome.cost
    assert (cost["record_steps"], cost["steps"], cost["critic_updates"]) == (3, 11, 4)
    assert len(found.column("record/score")) == 3
    assert {"mismatch", "mismatch_teacher", "early_sw2", "critic_error"} <= set(found.outcome.extra)


def test_an_interrupted_training_goes_on_with_its_path(interrupted):
    interrupted("diffusion/disback", "ring", 5, gan_weight=0.1)
