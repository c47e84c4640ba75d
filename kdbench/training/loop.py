"""The one training loop of loss-style methods.

The loop does per step only what training needs: fetch, forward, backward, clip, step. Values for the curve are
kept as tensors and read when they are due, so that a step costs no synchronisation with the device. Whether a
checkpoint is due costs one comparison with the clock.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from copy import deepcopy
from dataclasses import dataclass
from functools import reduce
from operator import add
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from kdbench.errors import Diverged, JobError, OverBudget
from kdbench.spec import Recipe
from kdbench.training.loaders import cycle
from kdbench.training.saver import Parts, Saver
from kdbench.training.state import Stateful, Values

if TYPE_CHECKING:
    from kdbench.task import Task

Loss = Callable[[Any, Any], Tensor | Mapping[str, Tensor]]

POINTS = 50
"""Points of a curve, whatever the number of steps."""


@dataclass
class FitResult:
    """What a call of ``fit`` did."""

    steps: int
    """Optimizer steps."""
    loss: float
    """Mean total loss over the last logged stretch."""
    seconds: float
    ema: nn.Module | None
    """The averaged network, where ``ema`` was asked for."""


def make_optimizer(parameters: Sequence[nn.Parameter], recipe: Recipe) -> torch.optim.Optimizer:
    """The optimizer that a recipe names. Biases and normalisation weights are decayed like all others.

    It takes all parameters at once (``foreach``) on every device: the same weights to the last bit, for less Python.
    """
    if recipe.optimizer == "sgd":
        return torch.optim.SGD(
            parameters,
            lr=recipe.lr,
            momentum=recipe.momentum,
            nesterov=recipe.momentum > 0,
            weight_decay=recipe.weight_decay,
            foreach=True,
        )
    kind = torch.optim.AdamW if recipe.optimizer == "adamw" else torch.optim.Adam
    return kind(parameters, lr=recipe.lr, betas=recipe.betas, weight_decay=recipe.weight_decay, foreach=True)


def rate(step: int, total: int, recipe: Recipe) -> float:
    """Learning rate of step ``step`` (0-based) of ``total``, as a fraction of the peak.

    ``cosine`` and ``linear`` reach ``final_lr`` at the last step; ``onecycle`` rises to the peak over the warm-up
    (0.3 of the steps where the recipe gives none) and falls to ``final_lr`` along a cosine.
    """
    warm = recipe.warmup or (0.3 if recipe.schedule == "onecycle" else 0.0)
    warm_steps = math.ceil(warm * total)
    if step < warm_steps:
        if recipe.schedule == "onecycle":
            start = 0.04  # the initial rate of one-cycle training is the peak over 25
            return start + (1 - start) * (1 - math.cos(math.pi * step / warm_steps)) / 2
        return (step + 1) / warm_steps
    done = (step - warm_steps) / max(1, total - 1 - warm_steps)
    if recipe.schedule in ("cosine", "onecycle"):
        return recipe.final_lr + (1 - recipe.final_lr) * (1 + math.cos(math.pi * done)) / 2
    if recipe.schedule == "linear":
        return 1 - (1 - recipe.final_lr) * done
    if recipe.schedule == "multistep":
        passed = sum(step >= milestone * total for milestone in recipe.milestones)
        return float(recipe.gamma**passed)
    return 1.0


class _Ema:
    """Exponential moving average of a network's weights; buffers are copied."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        if not 0 < decay < 1:
            raise JobError(f"ema is a decay between 0 and 1, not {decay}")
        self.model = deepcopy(model).requires_grad_(False)
        self.decay = decay
        self._mine: list[Tensor] = list(self.model.parameters())
        self._theirs: list[Tensor] = list(model.parameters())
        self._source = model

    @torch.no_grad()
    def update(self) -> None:
        torch._foreach_lerp_(self._mine, self._theirs, 1 - self.decay)
        for mine, theirs in zip(self.model.buffers(), self._source.buffers(), strict=True):
            mine.copy_(theirs)


class _Meter(Values):
    """Sums of named losses as tensors, read when a point of the curve is due."""

    kept = ("sums", "count")

    def __init__(self) -> None:
        self.sums: dict[str, Tensor] = {}
        self.count = 0

    def add(self, parts: Mapping[str, Tensor]) -> None:
        for name, value in parts.items():
            value = value.detach()
            self.sums[name] = self.sums[name] + value if name in self.sums else value
        self.count += 1

    def read(self) -> dict[str, float]:
        values = {name: float(total) / self.count for name, total in self.sums.items()}
        self.sums, self.count = {}, 0
        return values


class _Seen(Values):
    """What the loop counts."""

    def __init__(self) -> None:
        self.samples = 0
        self.flops_per_sample = 0.0
        self.loss = math.nan
        self.seconds = 0.0
        self.finished = False


def _named(value: Tensor | Mapping[str, Tensor]) -> tuple[Tensor, Mapping[str, Tensor]]:
    if isinstance(value, Tensor):
        return value, {"loss": value}
    if not isinstance(value, Mapping) or not value:
        raise JobError(f"a loss returns a scalar tensor or a mapping of named ones, not {type(value).__name__}")
    total = reduce(add, value.values())
    return total, {"loss": total, **value}


def _spend(task: Task, steps: int | None, unit: str, who: str) -> int:
    """Charge the steps, or all that are left; how many they are."""
    if steps is None:
        left = task.budget.remaining("steps")
        if math.isinf(left):
            raise JobError(f"this task has no limit on steps; pass steps= to {who}")
        steps = int(left)
    if steps < 1:
        raise OverBudget("no step is left in the budget of this task")
    task.budget.spend(unit, steps)
    return steps


def own_steps(task: Task, loader: Iterable[Any], steps: int | None, spend: str) -> Iterator[tuple[int, Any]]:
    """See :meth:`kdbench.task.Task.steps`."""
    steps = _spend(task, steps, spend, "task.steps")
    batches, counted, samples, flops_per_sample = cycle(loader), min(2, steps), 0, 0.0
    try:
        for step in range(1, steps + 1):
            batch = next(batches)
            with FlopCounterMode(display=False) if step == counted else nullcontext() as flops:
                yield step, batch
            samples += len(batch)
            task.budget.spend("samples", len(batch))
            if flops is not None:
                flops_per_sample = flops.get_total_flops() / len(batch)
            task.progress(step, steps, {})
    finally:
        task.budget.spend("flops", flops_per_sample * samples)


def fit(
    task: Task,
    model: nn.Module,
    loss: Loss,
    *,
    loader: Iterable[Any],
    recipe: Recipe,
    steps: int | None,
    spend: str,
    modules: Sequence[nn.Module],
    ema: float | None,
    on_step: Callable[[int], None] | None,
    state: Sequence[Stateful],
    tag: str,
) -> FitResult:
    """See :meth:`kdbench.task.Task.fit`."""
    steps = _spend(task, steps, spend, "task.fit")
    parameters = [p for network in (model, *modules) for p in network.parameters() if p.requires_grad]
    if not parameters:
        raise JobError("nothing to train: no parameter of the model requires a gradient")
    optimizer = make_optimizer(parameters, recipe)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: rate(min(step, steps - 1), steps, recipe))
    dtype = {"float32": None, "bfloat16": torch.bfloat16, "float16": torch.float16}[recipe.precision]
    scaler = torch.amp.GradScaler(task.device.type, enabled=recipe.precision == "float16")
    average = _Ema(model, ema) if ema is not None else None
    prefix = f"{tag}/" if tag else ""
    every = max(1, steps // POINTS)
    cast = torch.autocast(task.device.type, dtype, enabled=dtype is not None)
    watch = task.device.type == "cpu"  # reading a value costs a synchronisation on other devices
    counted = min(2, steps)  # the first step may make what all later ones share, such as cached teacher outputs
    meter, batches, seen = _Meter(), cycle(loader), _Seen()

    for network in (model, *modules):
        network.train()
    saver = Saver.of(
        task,
        Parts(
            networks=(model, *modules),
            average=None if average is None else average.model,
            optimizing={"optimizer": optimizer, "schedule": scheduler, "scaler": scaler},
            counts={"meter": meter, "seen": seen},
            batches=batches,
            state=state,
        ),
        call={"tag": tag, "spend": spend, "steps": steps, "recipe": recipe.model_dump_json()},
        functions={"loss": loss, "on_step": on_step},
        first=counted,
    )
    done = 0 if saver is None else saver.resume()
    values: dict[str, float] = {}
    started = time.perf_counter() - seen.seconds
    with nullcontext() if saver is None else saver.running():
        for step in range(done + 1, steps + 1):
            micro_batches = [next(batches) for _ in range(recipe.accumulate)]  # not counted: a loader may generate data
            with FlopCounterMode(display=False) if step == counted else nullcontext() as flops:
                for batch in micro_batches:
                    with cast:
                        total, parts = _named(loss(model, batch))
                    if watch and not math.isfinite(total.item()):
                        raise Diverged(f"the loss is {total.item()} at step {step} of {steps}")
                    meter.add(parts)
                    share = total / recipe.accumulate if recipe.accumulate > 1 else total
                    torch.autograd.backward(scaler.scale(share))
            size = sum(len(batch) for batch in micro_batches)
            seen.samples += size
            task.budget.spend("samples", size)
            if flops is not None:
                seen.flops_per_sample = flops.get_total_flops() / size
            if recipe.clip is not None:
                scaler.unscale_(optimizer)
                nn.utils.clip_grad_norm_(parameters, recipe.clip)
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad(set_to_none=True)
            scheduler.step()
            if average is not None:
                average.update()
            if on_step is not None:
                on_step(step)
            logged = step % every == 0 or step == steps
            if logged:
                values = meter.read()
                seen.loss = values["loss"]
                if not math.isfinite(seen.loss):
                    raise Diverged(f"the loss is {seen.loss} at step {step} of {steps}")
            task.progress(step, steps, values)  # before the log, which is progress too but knows no number of steps
            if logged:
                task.log(step, **{prefix + name: value for name, value in values.items()})
            if saver is not None and time.monotonic() >= saver.due:
                seen.seconds = time.perf_counter() - started
                saver.save(step, micro_batches[-1])
    if not seen.finished:
        seen.seconds, seen.finished = time.perf_counter() - started, True
        task.budget.spend("flops", seen.flops_per_sample * seen.samples)
        if saver is not None:
            saver.finish(steps, seen.seconds)
    model.eval()
    return FitResult(steps, seen.loss, seen.seconds, average.model if average else None)
