"""How far test images are from the boundary at which a network decides otherwise."""

from __future__ import annotations

import torch
from torch import Tensor, nn

ROWS = 250
"""Images at a time."""


@torch.enable_grad()
def boundary_margin(network: nn.Module, x: Tensor) -> Tensor:
    """(N,) distance of images (N, C, H, W) to the boundary between the two most probable classes, to first order.

    (z_1 - z_2) / ||grad_x (z_1 - z_2)||_2 with the two largest logits, 0 or more; exact for a linear network.
    Distances are in the units of the normalised images. The network is in evaluation mode.
    """
    found = []
    for rows in x.split(ROWS):
        inputs = rows.detach().clone().requires_grad_(True)
        best = network(inputs).float().topk(2, dim=1).values
        gap = best[:, 0] - best[:, 1]
        (slope,) = torch.autograd.grad(gap.sum(), inputs)
        found.append((gap / slope.flatten(1).norm(dim=1).clamp(min=1e-12)).detach())
    return torch.cat(found)
