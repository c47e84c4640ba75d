"""Small images as grids of patches: a transformer that classifies them, at the grid of training and at larger ones."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F

from kdbench.training.loaders import Order
from kdbench.training.position_losses import PositionLosses
from kdbench.training.positions import PositionEncoding
from kdbench.training.transformer import Block, initialise

if TYPE_CHECKING:
    from kdbench.task import Task

PATCH = 2
"""Pixels along a side of a patch."""
GRID = 4
"""Patches along a side at training: images of 8 x 8 pixels."""
HELD_OUT = 3
"""Every third image is for evaluation."""


@dataclass(frozen=True)
class Images:
    """Handwritten digits of scikit-learn (UCI, 8 x 8 pixels)."""

    x: Tensor
    """(N, 1, 8, 8) float32 in [0, 1]."""
    y: Tensor
    """(N,) int64, 0 to 9."""


@cache
def images(evaluation: bool) -> Images:
    """The images that a network is trained on, or those that it is evaluated on."""
    data = load_digits()
    rows = torch.arange(len(data.target))
    rows = rows[(rows % HELD_OUT == 0) == evaluation]
    x = torch.from_numpy(data.images).float()[rows, None] / 16
    return Images(x, torch.from_numpy(data.target).long()[rows])


class PatchClassifier(nn.Module):
    """A bidirectional transformer over patches with two-dimensional positions; logits from the mean of its outputs."""

    def __init__(self, *, width: int = 32, heads: int = 4, layers: int = 2, limit: int = 32, **encoding: Any) -> None:
        """``limit``: patches along a side are below it. ``encoding``: of :class:`PositionEncoding`, ``kind`` first."""
        super().__init__()
        self.embed, self.head = nn.Linear(PATCH**2, width), nn.Linear(width, 10)
        self.blocks = nn.ModuleList(Block(width, heads, 4 * width) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        initialise(self)
        self.positions = PositionEncoding(
            **encoding, width=width, heads=heads, layers=layers, extent=(GRID, GRID), limit=limit
        )

    def forward(self, x: Tensor, start: tuple[int, int] = (0, 0)) -> Tensor:
        """Images (B, 1, H, W) to logits (B, 10); the patch in the corner has the position ``start``."""
        rows, columns = x.shape[-2] // PATCH, x.shape[-1] // PATCH
        hidden = self.embed(F.unfold(x, PATCH, stride=PATCH).transpose(1, 2))
        grid = torch.cartesian_prod(torch.arange(rows), torch.arange(columns)) + torch.tensor(start)
        said = self.positions(grid[None].to(x.device))
        if said.added is not None:
            hidden = hidden + said.added
        for layer, block in enumerate(self.blocks):
            hidden = block(hidden, said.bias(layer), said.adapt(layer))
        logits: Tensor = self.head(self.norm(hidden).mean(1))
        return logits


def fit_classifier(task: Task, network: PatchClassifier, extra: PositionLosses | None, steps: int) -> None:
    """Train on batches of 32 images, with the losses on positions where there are such; charged as ``aux_steps``."""
    data, device = images(False), task.device

    def loss(model: PatchClassifier, rows: Tensor) -> dict[str, Tensor]:
        start = [0, 0] if extra is None else extra.shift().tolist()
        logits = model(data.x[rows].to(device), (start[0], start[1]))
        parts = {"ce": F.cross_entropy(logits.float(), data.y[rows].to(device))}
        return parts if extra is None else parts | extra()

    order = Order(len(data.y), 32, task.generator("images"))
    state = [] if extra is None else [extra]
    task.fit(network, loss, loader=order, steps=steps, spend="aux_steps", tag="images", lr=3e-3, state=state)


@torch.no_grad()
def accuracy_by_grid(network: PatchClassifier, grids: tuple[int, ...] = (4, 6, 8)) -> dict[str, float]:
    """``image_accuracy/GxG`` in [0, 1] on the evaluation images, enlarged bilinearly to G patches along each side."""
    network.eval()
    data, device = images(True), next(network.parameters()).device
    found = {}
    for grid in grids:
        x = F.interpolate(data.x, size=(grid * PATCH, grid * PATCH), mode="bilinear", align_corners=False)
        right = network(x.to(device)).argmax(-1).cpu() == data.y
        found[f"image_accuracy/{grid}x{grid}"] = float(right.double().mean())
    return found
