"""Contrastive pre-training: features without labels, from two random views of each image."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from kdbench.losses.contrastive import nt_xent
from kdbench.training.projectors import projector

if TYPE_CHECKING:
    from kdbench.task import Task


class Projected(nn.Module):
    """An encoder with its projection head; (B, ...) images to (B, ``dim``) features that are compared by cosine."""

    def __init__(self, encoder: nn.Module, features: Callable[[nn.Module, Tensor], Tensor], width: int, dim: int):
        """``features(encoder, x)`` gives (B, ``width``)."""
        super().__init__()
        self.encoder = encoder
        self.head = projector("mlp", width, dim)
        self._features = features

    def forward(self, x: Tensor) -> Tensor:
        projected: Tensor = self.head(self._features(self.encoder, x))
        return projected


def simclr(
    task: Task,
    model: nn.Module,
    loader: Iterable[Any],
    view: Callable[[Tensor], Tensor],
    *,
    temperature: float = 0.5,
    steps: int,
    tag: str = "simclr",
    **recipe: Any,
) -> nn.Module:
    """Train ``model`` (images to features) by NT-Xent on two views of each batch; returned in eval mode.

    Chen et al., ICML 2020, algorithm 1. ``view(x)`` draws a random view of each image. Both views are one batch, so
    that normalisation statistics are of both and updated once. Labels are not used. Charged as ``aux_steps``.
    """

    def loss(network: nn.Module, batch: Any) -> Tensor:
        a, b = network(torch.cat([view(batch.x), view(batch.x)])).chunk(2)
        return nt_xent(a, b, temperature)

    task.fit(model, loss, loader=loader, steps=steps, spend="aux_steps", tag=tag, **recipe)
    return model.eval()
