"""Labels of distilled images: classes, logits stored once, or logits of every augmented and mixed batch.

A :class:`Labelling` says how labels are made, in plain values, so that the track can make them for *any* images: those
of a distilled set, and those of a random real subset. What the labels are worth and what the images are worth are told
apart in this way.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdbench.errors import ArtifactError
from kdbench.tracks.dataset_distillation.blocks.views import Mix


@dataclass(frozen=True)
class Labelling:
    """How labels are made and learned."""

    kind: Literal["hard", "static", "batches"] = "hard"
    """``hard``: classes. ``static``: logits of each image as it is, stored once, and interpolated where images are
    mixed. ``batches``: logits of every augmented and mixed batch of every epoch (fast knowledge distillation)."""
    members: tuple[int, ...] = ()
    """Which networks of the task's committee label."""
    weights: tuple[float, ...] = ()
    """Of their logits, summing to 1; empty: equal."""
    temperature: float = 1.0
    squared: bool = False
    """Whether the loss is multiplied by temperature^2."""
    mix: Mix = "none"
    alpha: float = 1.0
    """Of the Beta distribution that shares are drawn from."""
    statistics: Literal["running", "batch"] = "running"
    """What batch normalisation of the labelling networks uses: statistics of the training data, or of the batch."""
    parts: int = 1
    """Equal parts of a batch that are labelled, and learned, on their own: their gradients are accumulated."""
    stretch: float = 1.0
    """The learning rate is 0.5 (1 + cos(pi e / (E stretch))) of the peak after e of E updates."""

    def __post_init__(self) -> None:
        if (self.kind == "hard") == bool(self.members):
            raise ArtifactError("hard labels have no members of the committee, all others have at least one")
        if self.weights and len(self.weights) != len(self.members):
            raise ArtifactError(f"{len(self.weights)} weights are given for {len(self.members)} members")
        if self.weights and abs(sum(self.weights) - 1) > 1e-4:
            raise ArtifactError(f"weights of a committee sum to 1, not to {sum(self.weights):g}")
        if self.temperature <= 0 or self.parts < 1 or self.stretch <= 0:
            raise ArtifactError("temperature and stretch are positive, and a batch has at least one part")

    def floats(self, images: int, classes: int, epochs: int) -> int:
        """Numbers that have to be stored beside the class of each image."""
        return {"hard": 0, "static": images * classes, "batches": epochs * images * classes}[self.kind]

    def shares(self) -> tuple[float, ...]:
        """Weight of each member."""
        return self.weights or (1 / len(self.members),) * len(self.members)


@contextmanager
def batch_statistics(network: nn.Module) -> Iterator[None]:
    """Batch normalisation inside uses the statistics of each batch; the network's own stay as they are."""
    layers = [m for m in network.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.track_running_stats]
    kept = [(layer.running_mean, layer.running_var) for layer in layers]
    try:
        for layer in layers:
            layer.running_mean = layer.running_var = None  # then a layer in evaluation mode takes those of its batch
        yield
    finally:
        for layer, (mean, var) in zip(layers, kept, strict=True):
            layer.running_mean, layer.running_var = mean, var


@torch.no_grad()
def vote(networks: Sequence[nn.Module], labelling: Labelling, x: Tensor) -> Tensor:
    """(B, K) float32: the members' logits for images (B, C, H, W), averaged with their weights.

    ``networks`` are the whole committee, in evaluation mode.
    """
    total: Tensor | None = None
    for member, share in zip(labelling.members, labelling.shares(), strict=True):
        network = networks[member]
        if labelling.statistics == "batch":
            with batch_statistics(network):
                logits = network(x).float()
        else:
            logits = network(x).float()
        total = share * logits if total is None else total + share * logits
    assert total is not None
    return total


def learning_loss(logits: Tensor, target: Tensor, labelling: Labelling) -> Tensor:
    """KL(softmax(target / T) || softmax(logits / T)), mean over the batch; ``target`` are logits (B, K).

    Times T^2 where the labelling says so. Without, a large T makes the gradient smaller by that factor, which an
    optimizer that divides by its size does not notice.
    """
    t = labelling.temperature
    loss = F.kl_div(
        F.log_softmax(logits.float() / t, -1),
        F.log_softmax(target.float() / t, -1),
        reduction="batchmean",
        log_target=True,
    )
    return loss * t**2 if labelling.squared else loss


def hard_loss(logits: Tensor, first: Tensor, second: Tensor, lam: float) -> Tensor:
    """Cross-entropy with the classes of both images of each pair, by their shares; (B, K), (B,), (B,)."""
    loss = lam * F.cross_entropy(logits.float(), first)
    return loss if lam == 1 else loss + (1 - lam) * F.cross_entropy(logits.float(), second)
