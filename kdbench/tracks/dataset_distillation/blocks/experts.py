"""Experts: the ways of weights through training on the real data, made once and kept."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional as F

from kdbench.tracks.dataset_distillation.blocks.epochs import real_epochs
from kdbench.tracks.dataset_distillation.blocks.flat import FlatNetwork
from kdbench.tracks.dataset_distillation.blocks.trainer import correct
from kdbench.tracks.dataset_distillation.spec import NETWORK_FORMAT

if TYPE_CHECKING:
    from torch import nn

    from kdbench.tracks.dataset_distillation.task import DDTask


@dataclass(frozen=True)
class ExpertRecipe:
    """How experts learn: SGD on cross-entropy, batches of the task's ``buffer``."""

    lr: float = 0.02
    momentum: float = 0.0
    weight_decay: float = 0.0
    clip_start: float = 1.0
    """Factor of the loss in the first epoch."""
    clip_step: float = 0.05
    """By how much the factor grows each epoch, up to 1."""
    penalty: float = 0.0
    """Weight of the gradient penalty."""
    decay: float = 1.0
    """Factor of the learning rate from the middle of training on."""
    augmented: bool = False

    def factor(self, epoch: int) -> float:
        """Factor of the loss in an epoch, counted from 0 (clipping loss)."""
        return min(1.0, self.clip_start + self.clip_step * epoch) if self.clip_start < 1 else 1.0


def gradient_penalty(network: nn.Module, x: Tensor) -> Tensor:
    """mean((||grad_x sum of logits||_2 - 1)^2) for images (B, C, H, W), a scalar with gradients in the weights.

    The norm is over the channels, at every pixel.
    """
    x = x.detach().requires_grad_(True)
    (gradient,) = torch.autograd.grad(network(x).sum(), x, create_graph=True)
    # the root has no slope at 0, which a pixel that no logit depends on would meet
    return ((gradient.pow(2).sum(1) + 1e-12).sqrt() - 1).pow(2).mean()


@dataclass
class Expert:
    """One way through training."""

    weights: Tensor
    """(epochs + 1, P): before training and after each epoch."""

    @property
    def epochs(self) -> int:
        return len(self.weights) - 1


@torch.enable_grad()
def _train(task: DDTask, flat: FlatNetwork, recipe: ExpertRecipe, seed: int) -> Tensor:
    buffer, train, data = task.spec.buffer, task.split("train"), task.spec.data
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = task.kind.build(task.spec.student).to(task.device)
    optimizer = torch.optim.SGD(
        network.parameters(), lr=recipe.lr, momentum=recipe.momentum, weight_decay=recipe.weight_decay
    )
    generator, kept = torch.Generator().manual_seed(seed + 1), [flat.vector(network)]
    flip = getattr(data, "flip", False)
    for epoch in range(buffer.epochs):
        for group in optimizer.param_groups:
            group["lr"] = recipe.lr * (recipe.decay if epoch >= buffer.epochs // 2 else 1.0)
        for batch in real_epochs(train, 1, buffer.batch_size, generator, flip=flip, augmented=recipe.augmented):
            loss = recipe.factor(epoch) * F.cross_entropy(network(batch.x).float(), batch.y)
            if recipe.penalty:
                loss = loss + recipe.penalty * gradient_penalty(network, train.x[batch.rows])
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        kept.append(flat.vector(network))
    return torch.stack(kept)


def buffer_key(task: DDTask, recipe: ExpertRecipe) -> dict[str, Any]:
    """Everything that decides an expert buffer."""
    spec = task.spec
    return {
        "track": "dataset_distillation",
        "format": NETWORK_FORMAT,
        "data": spec.data.recipe(),
        "flip": getattr(spec.data, "flip", False),
        "arch": spec.student,
        "buffer": spec.buffer.model_dump(mode="json"),
        "recipe": asdict(recipe),
        "seed": spec.teacher_seed,
    }


def experts(task: DDTask, recipe: ExpertRecipe) -> list[Expert]:
    """The task's experts for a recipe, on its device, from the cache or trained now.

    Their optimizer steps are charged to the meter ``expert_steps`` of every job that uses them.
    """
    spec, flat = task.spec, FlatNetwork(task.network(task.spec.student, "init"))

    def make(folder: Path) -> None:
        ways = {
            str(i): _train(task, flat, recipe, spec.teacher_seed + 7919 * (i + 1)) for i in range(spec.buffer.count)
        }
        save_file({name: way.cpu().contiguous() for name, way in ways.items()}, folder / "experts.safetensors")
        (folder / "experts.json").write_text(json.dumps({"count": len(ways)}) + "\n")

    found = load_file(task.cache.get("experts", buffer_key(task, recipe), make) / "experts.safetensors")
    batches = -(-len(task.split("train")) // spec.buffer.batch_size)
    task.budget.spend("expert_steps", spec.buffer.count * spec.buffer.epochs * batches)
    return [Expert(found[str(i)].to(task.device)) for i in range(spec.buffer.count)]


def parameter_change(ways: list[Expert]) -> float:
    """Mean over experts and epochs of ||theta_{e+1} - theta_e||_2: less is smoother."""
    return float(torch.cat([way.weights.diff(dim=0).norm(dim=1) for way in ways]).double().mean())


def expert_accuracy(task: DDTask, ways: list[Expert]) -> float:
    """Mean validation accuracy of the experts' last weights."""
    val, network = task.split("val"), task.network(task.spec.student, "init").eval()
    flat, found = FlatNetwork(network), []
    for way in ways:
        with torch.no_grad():
            for p, part in zip(network.parameters(), flat.parts(way.weights[-1]).values(), strict=True):
                p.copy_(part)
        found.append(float(correct(network, val.x, val.y).mean()))
    return sum(found) / len(found)
