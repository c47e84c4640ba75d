"""Images that networks recognise and whose statistics are those of the training data (SRe2L and what followed it).

L(x) = sum_m w_m (CE(f_m(x), y) + r_bn BN_m(x)), minimised over the pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdbench.tracks.dataset_distillation.blocks.bn import bn_loss, with_statistics
from kdbench.tracks.dataset_distillation.blocks.views import mirrored, resized_crop

if TYPE_CHECKING:
    from kdbench.tracks.dataset_distillation.task import DDTask

BETAS = (0.5, 0.9)
"""Of Adam."""
ROLL = 0.125
"""Largest cyclic shift, as a share of the side."""

View = Callable[[Tensor, np.random.Generator], Tensor]


class Canvas(nn.Module):
    """Pixels as parameters, for ``task.fit``."""

    def __init__(self, start: Tensor) -> None:
        """``start`` (N, C, H, W) is copied."""
        super().__init__()
        self.pixels = nn.Parameter(start.detach().clone())

    def forward(self) -> Tensor:
        return self.pixels

    @torch.no_grad()
    def clamp(self, low: Tensor, high: Tensor) -> None:
        """Bring values back to what a picture may have; bounds (C, 1, 1)."""
        self.pixels.copy_(torch.maximum(torch.minimum(self.pixels, high), low))


def rolled(x: Tensor, rng: np.random.Generator) -> Tensor:
    """A batch (B, C, H, W) shifted cyclically, all images by the same number of pixels."""
    reach = max(1, round(ROLL * x.shape[-1]))
    dy, dx = rng.integers(-reach, reach + 1, 2)
    return torch.roll(x, (int(dy), int(dx)), (2, 3))


def view_of(*, crop: bool, flip: bool) -> View:
    """What recovery does to images before networks see them: a roll, after a random-resized crop and mirroring if
    asked."""

    def view(x: Tensor, rng: np.random.Generator) -> Tensor:
        if crop:
            x = resized_crop(x, rng)
        if flip:
            x = mirrored(x, rng)
        return rolled(x, rng)

    return view


def recovery_terms(
    x: Tensor,
    y: Tensor,
    models: Sequence[nn.Module],
    weights: Sequence[float],
    r_bn: float,
    first: float = 10.0,
    groups: int = 1,
) -> dict[str, Tensor]:
    """``ce`` and ``bn``, weighted; their sum is the loss. Images (B, C, H, W), classes (B,).

    ``groups``: that many batches of equal size lie one after another, and the sum of their losses is meant.
    """
    ce, bn = x.new_zeros(()), x.new_zeros(())
    for model, weight in zip(models, weights, strict=True):
        logits, distances = with_statistics(model, x, groups)
        ce = ce + weight * groups * F.cross_entropy(logits.float(), y)
        bn = bn + weight * r_bn * bn_loss(distances, first)
    return {"ce": ce, "bn": bn}


def recover(
    task: DDTask,
    start: Tensor,
    labels: Tensor,
    models: Sequence[nn.Module],
    weights: Sequence[float],
    *,
    steps: int,
    lr: float,
    r_bn: float,
    view: View,
    purpose: str,
    spend: str = "steps",
) -> Tensor:
    """Images (N, C, H, W) that start at ``start`` and minimise the loss in ``steps`` updates of Adam; one batch.

    A batch should have every class: statistics of one class are not those of the data. The rate falls along a cosine;
    values are clamped to the valid range after each step. ``purpose`` names the random stream of the views and the
    prefix in the curve.
    """
    canvas, rng = Canvas(start).to(task.device), task.rng(f"recover/{purpose}")
    low, high = task.range

    def loss(model: Canvas, rows: Tensor) -> dict[str, Tensor]:
        return recovery_terms(view(model(), rng), labels[rows], models, weights, r_bn)

    task.fit(
        canvas,
        loss,
        loader=[torch.arange(len(start), device=task.device)],
        steps=steps,
        spend=spend,
        on_step=lambda step: canvas.clamp(low, high),
        optimizer="adam",
        betas=BETAS,
        lr=lr,
        weight_decay=0.0,
        schedule="cosine",
        accumulate=1,
        tag=purpose,
    )
    return canvas.pixels.detach()
