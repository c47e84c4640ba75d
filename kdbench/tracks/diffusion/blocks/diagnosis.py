"""What became of a critic and its heads at the end of a training: how right they are, on what they have not seen."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from kdbench.tracks.diffusion.blocks.backward import generated
from kdbench.tracks.diffusion.blocks.gan import DiffusionGan
from kdbench.tracks.diffusion.blocks.levels import Levels, noise_like
from kdbench.tracks.diffusion.blocks.matching import Matching
from kdbench.tracks.diffusion.conditions import Condition
from kdbench.tracks.diffusion.networks.base import Denoiser
from kdbench.tracks.diffusion.processes import Process, spread
from kdbench.tracks.diffusion.samplers.fewstep import Mode

if TYPE_CHECKING:
    from kdbench.tracks.diffusion.task import DiffusionTask

FILE = "critic.json"
"""Artifact that training leaves for ``evaluate``."""
CLEANEST = 0.3
"""Place of the grid from which on the posterior mean of a few thousand points is that of their distribution."""
POINTS = 4096
QUERIES = 512


def posterior_mean(process: Process, x: Tensor, t: Tensor, samples: Tensor, same: Tensor | None = None) -> Tensor:
    """(B, *shape) E[x_0 | x_t = x] where x_0 is one of ``samples`` (N, *shape), each as likely; float64 inside.

    ``same`` (B, N) bool says which samples are possible for a row: those of its condition.
    """
    flat, points = x.double().flatten(1), samples.double().flatten(1)
    a, b = spread(process.alpha(t), flat), spread(process.sigma(t), flat)
    logits = (a * (flat @ points.T) - a**2 * (points**2).sum(1) / 2) / b**2  # |x - a p|^2 but for what all have
    if same is not None:
        logits = logits.masked_fill(~same, -torch.inf)
    return (logits.softmax(1) @ points).view_as(x).to(x.dtype)


@torch.no_grad()
def critic_error(task: DiffusionTask, matching: Matching, generator: torch.Generator, points: int = POINTS) -> float:
    """E |D_fake - D*|^2 over levels, D* being the posterior mean of the generator's own samples of each class.

    The samples that D* is made of are others than those that both are asked about. For points in the plane: images
    would need more samples than there are.
    """
    model, times = matching.generator, matching.times

    def made(count: int) -> tuple[Tensor, Condition]:
        cond = task.kind.conditions(count, generator).to(task.device)
        noise = torch.randn(count, *task.shape, generator=generator).to(task.device)
        stops = torch.randint(len(times), (count,), generator=generator)
        return generated(model, noise, cond, times, generator, stop=stops, mode=matching.mode)[0], cond

    samples, classes = made(points)
    x, cond = made(QUERIES)
    t = Levels(task.process, CLEANEST, 0.98).draw(len(x), generator).to(x)
    noised = task.process.noised(x, noise_like(x, generator), t)
    same = None
    if cond.tokens is not None and classes.tokens is not None:
        same = (cond.tokens[:, None] == classes.tokens).all(-1)
    wanted = posterior_mean(task.process, noised, t, samples, same)
    found = matching.critic.network(noised, t, cond)
    return float(((found - wanted) ** 2).flatten(1).sum(1).mean())


@torch.no_grad()
def logit_accuracies(
    task: DiffusionTask, gan: DiffusionGan, generator: Denoiser, times: Sequence[float], mode: Mode = "renoise"
) -> dict[str, float]:
    """Share of logits on the right side of 0: of generated samples, of training images and of images held out."""
    count = task.spec.evaluation.val_samples
    noise, cond = task.kind.evaluation(count, "val")
    noise, cond = noise.to(task.device), cond.to(task.device)
    x, _ = generated(generator, noise, cond, times, gan.generator, mode=mode)
    values = {"gan_accuracy_fake": float((gan.logits(x, cond) < 0).float().mean())}
    for name, split in (("train", task.split("train")), ("val", task.split("val"))):
        rows = slice(0, count)
        values[f"gan_accuracy_{name}"] = float((gan.logits(split.x[rows], split.cond[rows]) > 0).float().mean())
    return values


def leave(task: DiffusionTask, matching: Matching) -> None:
    """Measure a critic at the end of a training and leave the numbers for :func:`found`."""
    values: dict[str, float] = {}
    if task.spec.data.kind == "points":
        values["critic_error"] = critic_error(task, matching, task.generator("diagnosis"))
    if matching.adversary is not None:
        values |= logit_accuracies(task, matching.adversary.gan, matching.generator, matching.times, matching.mode)
    leave_values(task, values)


def leave_values(task: DiffusionTask, values: dict[str, float]) -> None:
    """Leave numbers for :func:`found`."""
    task.artifact(FILE).write_text(json.dumps(values) + "\n")


def found(task: DiffusionTask) -> dict[str, float]:
    """What training has left: ``critic_error`` of points, ``gan_accuracy_fake``, ``_train`` and ``_val``, and more."""
    values: dict[str, float] = json.loads(task.artifact(FILE).read_text())
    return values
