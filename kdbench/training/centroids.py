"""Centroids of a network's outputs over a data set, in the mode in which the network trains."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from kdbench.losses.centroids import class_sums, normalise_rows


@torch.no_grad()
def training_outputs(model: nn.Module, x: Tensor) -> Tensor:
    """Probabilities (B, C) of a network in training mode; its mode and running statistics are as before afterwards."""
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    mode = model.training
    try:
        logits: Tensor = functional_call(model.train(), state, (x,))
        return F.softmax(logits.float(), -1)
    finally:
        model.train(mode)


def network_centroids(model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], classes: int) -> Tensor:
    """Mean outputs (C, C) by class, over all batches of images and labels (B,) (-1: left out).

    The network is in training mode: each batch is normalised by its own statistics, as where it is trained.
    """
    parts = [class_sums(training_outputs(model, x), y) for x, y in batches]
    if not parts:
        return torch.full((classes, classes), 1 / classes)
    return normalise_rows(torch.stack([sums for sums, _ in parts]).sum(0), torch.stack([n for _, n in parts]).sum(0))
