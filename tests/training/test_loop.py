"""The training loop: what it minimises, what it charges, when it stops."""

from __future__ import annotations

import math
from copy import deepcopy
from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from kdbench.budget import Budget
from kdbench.errors import Diverged, JobError, OverBudget
from kdbench.spec import Recipe
from kdbench.training.loop import fit, make_optimizer, own_steps, rate


class Rows(list):
    """A batch: its length is what the budget is charged."""


class FakeTask(SimpleNamespace):
    def __init__(self, steps: int = 20) -> None:
        super().__init__(budget=Budget({"steps": steps}), device=torch.device("cpu"), curve=[], checkpoints=None)

    def log(self, step: int, **values: float) -> None:
        self.curve.append((step, values))

    def progress(self, step: int, total: int | None, values: dict[str, float]) -> None:
        assert total is not None


def problem(seed: int = 0) -> tuple[nn.Module, list[Rows]]:
    torch.manual_seed(seed)
    model = nn.Linear(3, 1)
    x = torch.randn(16, 3)
    y = x @ torch.tensor([[1.0], [-2.0], [0.5]])
    return model, [Rows(zip(x[i : i + 4], y[i : i + 4])) for i in range(0, 16, 4)]


def squared(model: nn.Module, batch: Rows) -> torch.Tensor:
    x, y = (torch.stack(column) for column in zip(*batch))
    return (model(x) - y).square().mean()


def run(task, model, loader, loss=squared, **kwargs):
    options = {"steps": None, "spend": "steps", "modules": (), "ema": None, "on_step": None, "state": (), "tag": ""}
    recipe = kwargs.pop("recipe", Recipe(optimizer="sgd", lr=0.05, momentum=0.0, schedule="constant"))
    return fit(task, model, loss, loader=loader, recipe=recipe, **{**options, **kwargs})


def test_it_is_the_loop_one_would_write_by_hand():
    model, loader = problem()
    mine, _ = problem()
    optimizer = torch.optim.SGD(mine.parameters(), lr=0.05)
    for step in range(20):
        optimizer.zero_grad()
        squared(mine, loader[step % 4]).backward()
        optimizer.step()
    task = FakeTask(20)
    result = run(task, model, loader)
    assert torch.equal(model.weight, mine.weight)
    assert result.steps == 20
    assert task.budget.report()["steps"] == 20
    assert task.budget.report()["samples"] == 80
    assert not model.training


def test_accumulated_micro_batches_equal_one_large_batch():
    model, loader = problem()
    large, _ = problem()
    whole = [Rows(loader[0] + loader[1])]
    run(FakeTask(1), model, loader, recipe=Recipe(optimizer="sgd", lr=0.1, momentum=0, accumulate=2))
    run(FakeTask(1), large, whole, recipe=Recipe(optimizer="sgd", lr=0.1, momentum=0))
    torch.testing.assert_close(model.weight, large.weight)


def test_named_losses_are_summed_and_logged_by_name():
    model, loader = problem()
    task = FakeTask(10)

    def loss(model, batch):
        value = squared(model, batch)
        return {"fit": value, "penalty": 0.1 * model.weight.square().sum()}

    run(task, model, loader, loss, tag="phase")
    step, values = task.curve[-1]
    assert step == 10
    assert values["phase/loss"] == pytest.approx(values["phase/fit"] + values["phase/penalty"], rel=1e-6)


def test_flops_count_forward_and_backward_of_every_step():
    model, loader = problem()
    task = FakeTask(10)
    run(task, model, loader)
    # forward 2*4*3*1 and the gradient of the weight likewise; the input needs no gradient
    assert task.budget.report()["flops"] == 10 * 2 * (2 * 4 * 3)


def test_clipping_bounds_the_step():
    model, loader = problem()
    before = model.weight.detach().clone()
    bias = model.bias.detach().clone()
    run(FakeTask(1), model, loader, recipe=Recipe(optimizer="sgd", lr=1.0, momentum=0, clip=1e-3))
    moved = torch.cat([(model.weight - before).flatten(), model.bias - bias]).norm()
    assert moved.item() == pytest.approx(1e-3, rel=1e-3)


def test_the_average_of_weights_follows_its_definition():
    model, loader = problem()
    seen = [model.weight.detach().clone()]
    result = run(FakeTask(5), model, loader, ema=0.5, on_step=lambda step: seen.append(model.weight.detach().clone()))
    expected = seen[0]
    for weight in seen[1:]:
        expected = 0.5 * expected + 0.5 * weight
    torch.testing.assert_close(result.ema.weight, expected)
    assert not any(p.requires_grad for p in result.ema.parameters())


def test_further_modules_are_trained_too():
    model, loader = problem()
    scale = nn.Linear(1, 1)
    before = scale.weight.detach().clone()

    def loss(model, batch):
        x, y = (torch.stack(column) for column in zip(*batch))
        return (scale(model(x)) - y).square().mean()

    run(FakeTask(3), model, loader, loss, modules=[scale])
    assert not torch.equal(before, scale.weight)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_ends_the_job_at_its_step(bad):
    model, loader = problem()
    calls = []

    def loss(model, batch):
        calls.append(1)
        return squared(model, batch) * (bad if len(calls) == 7 else 1.0)

    with pytest.raises(Diverged, match="at step 7 of 20"):
        run(FakeTask(20), model, loader, loss)


def test_overspending_is_refused_before_the_first_step():
    model, loader = problem()
    before = model.weight.detach().clone()
    task = FakeTask(10)
    with pytest.raises(OverBudget, match="aux_steps"):
        run(task, model, loader, steps=11)
    assert torch.equal(model.weight, before)
    run(task, model, loader, steps=50, spend="aux_steps")
    assert task.budget.report()["aux_steps"] == 50
    run(task, model, loader)
    with pytest.raises(OverBudget, match="no step is left"):
        run(task, model, loader)


def test_mistakes_of_a_method_are_named():
    model, loader = problem()
    with pytest.raises(JobError, match="gave no batch"):
        run(FakeTask(), model, [])
    with pytest.raises(JobError, match="mapping of named ones, not float"):
        run(FakeTask(), model, loader, lambda model, batch: 1.0)
    with pytest.raises(JobError, match="no parameter of the model requires a gradient"):
        run(FakeTask(), model.requires_grad_(False), loader)


@pytest.mark.parametrize("schedule", ["constant", "cosine", "linear", "onecycle", "multistep"])
def test_rates_stay_between_zero_and_the_peak_and_end_where_they_should(schedule):
    recipe = Recipe(schedule=schedule, warmup=0.1, final_lr=0.05)
    rates = [rate(step, 200, recipe) for step in range(200)]
    assert all(0 < value <= 1 for value in rates)
    assert max(rates) == pytest.approx(1.0, abs=1e-3)
    end = {"constant": 1.0, "multistep": 0.1**3}.get(schedule, 0.05)
    assert rates[-1] == pytest.approx(end, rel=1e-6)
    top = rates.index(max(rates))
    assert all(a <= b + 1e-9 for a, b in pairwise(rates[: top + 1]))
    assert all(a >= b - 1e-9 for a, b in pairwise(rates[top:]))


def test_one_step_is_a_schedule_too():
    for schedule in ("constant", "cosine", "linear", "onecycle", "multistep"):
        assert 0 < rate(0, 1, Recipe(schedule=schedule)) <= 1


@pytest.mark.parametrize("name", ["sgd", "adam", "adamw"])
def test_optimizers_take_the_recipe(name):
    optimizer = make_optimizer(list(nn.Linear(2, 2).parameters()), Recipe(optimizer=name, lr=0.3, weight_decay=0.1))
    assert type(optimizer).__name__.lower() == name
    assert optimizer.param_groups[0]["lr"] == 0.3
    assert optimizer.param_groups[0]["weight_decay"] == 0.1


@pytest.mark.parametrize("name", ["sgd", "adam", "adamw"])
def test_taking_all_parameters_at_once_gives_the_weights_of_one_after_the_other(name):
    def trained(**options: bool):
        generator = torch.Generator().manual_seed(0)
        weights = [nn.Parameter(torch.randn(size, size, generator=generator)) for size in (1, 3, 17)]
        optimizer = make_optimizer(weights, Recipe(optimizer=name, lr=0.1, weight_decay=0.1, momentum=0.9))
        optimizer.param_groups[0].update(options)
        for _ in range(20):
            for weight in weights:
                weight.grad = torch.randn(weight.shape, generator=generator)
            optimizer.step()
        return torch.cat([weight.detach().flatten() for weight in weights])

    assert torch.equal(trained(), trained(foreach=False))


def test_flops_follow_the_sizes_of_the_batches():
    model, loader = problem()
    task = FakeTask(4)
    run(task, model, [loader[0], Rows(loader[1][:2])])
    assert task.budget.report()["samples"] == 4 + 2 + 4 + 2
    assert task.budget.report()["flops"] == 12 * 2 * (2 * 3)


def test_a_loop_of_ones_own_is_charged_as_fit_is():
    model, loader = problem()
    task, other = FakeTask(20), FakeTask(20)
    run(task, deepcopy(model), loader)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    for step, batch in own_steps(other, loader, None, "steps"):
        assert batch is loader[(step - 1) % 4]
        optimizer.zero_grad()
        squared(model, batch).backward()
        optimizer.step()
    assert other.budget.report() == task.budget.report()
    assert other.budget.report()["flops"] > 0


def test_a_loop_of_ones_own_that_is_left_early_has_paid_its_steps_and_what_it_did():
    model, loader = problem()
    task = FakeTask(20)
    for step, batch in own_steps(task, loader, None, "steps"):
        squared(model, batch).backward()
        if step == 5:
            break
    assert task.budget.report()["steps"] == 20
    assert task.budget.report()["samples"] == 16, "the fifth batch was not finished"
    assert task.budget.report()["flops"] > 0


def test_a_loop_of_ones_own_stops_before_its_first_step_where_the_budget_does_not_suffice():
    _, loader = problem()
    with pytest.raises(OverBudget):
        next(own_steps(FakeTask(20), loader, 21, "steps"))
    with pytest.raises(JobError, match="no limit on steps"):
        next(own_steps(FakeTask(math.inf), loader, None, "steps"))


def test_state_that_no_checkpoint_could_keep_is_refused_before_the_first_step():
    model, loader = problem()
    with pytest.raises(JobError, match=r"state\[1\] of task.fit, a list, has no state_dict"):
        run(FakeTask(), model, loader, state=(nn.Linear(1, 1), []))
