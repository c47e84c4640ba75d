"""Features of images: what reaches the last layer of a network."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from kdbench.tracks.vision.models.base import Classifier

ROWS = 500
"""Images at a time."""


@torch.no_grad()
def features(network: nn.Module, x: Tensor) -> Tensor:
    """(N, D) inputs of the last layer for images (N, C, H, W).

    Called as the network itself, so that the task counts what its teachers are asked.
    """
    assert isinstance(network, Classifier)
    found: list[Tensor] = []
    handle = network.head().register_forward_pre_hook(lambda _, inputs: found.append(inputs[0].detach().float()))
    try:
        for rows in x.split(ROWS):
            network(rows)
    finally:
        handle.remove()
    return torch.cat(found)
