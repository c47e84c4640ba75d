"""Training on a distilled set: one way for all sets, the same for scores, for validation and for priors."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from kdbench.errors import Diverged
from kdbench.tracks.dataset_distillation.blocks.store import Store

ROWS = 500
"""Images that are predicted at a time."""


def epochs_of(rows: int, batch_size: int, updates: int) -> int:
    """Epochs over ``rows`` images in which ``updates`` optimizer steps are made."""
    return math.ceil(updates / math.ceil(rows / batch_size))


@torch.enable_grad()
def train_network(
    network: nn.Module, store: Store, *, updates: int, lr: float, weight_decay: float, seed: int
) -> nn.Module:
    """Train ``network`` in place for ``updates`` steps of AdamW and return it in evaluation mode.

    The rate falls along a cosine, as the labelling says. The last network counts, whatever it is worth. ``seed``
    decides the order and the views of images. Raises ``Diverged`` where weights become infinite.
    """
    optimizer = torch.optim.AdamW(network.parameters(), lr=lr, weight_decay=weight_decay)
    network.train()
    done, epoch = 0, 0
    while done < updates:
        for parts in store.epoch(epoch, seed):
            if done == updates:
                break
            for group in optimizer.param_groups:
                group["lr"] = lr * 0.5 * (1 + math.cos(math.pi * done / (updates * store.labelling.stretch)))
            optimizer.zero_grad(set_to_none=True)
            size = sum(map(len, parts))
            for part in parts:
                loss = part.loss(network(part.x)) * (len(part) / size)
                loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            done += 1
        epoch += 1
    if not all(bool(torch.isfinite(p).all()) for p in network.parameters()):
        raise Diverged("a network that learned from the distilled set has infinite weights")
    return network.eval()


@torch.no_grad()
def predict(network: nn.Module, x: Tensor) -> Tensor:
    """Logits (N, K) of images (N, C, H, W); the network is in evaluation mode."""
    return torch.cat([network(rows).float() for rows in x.split(ROWS)])


def correct(network: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """(N,) float64: 1 where the most probable class is the right one."""
    return (predict(network, x).argmax(1) == y).double()
