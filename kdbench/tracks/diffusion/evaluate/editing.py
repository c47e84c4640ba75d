"""How faithfully an editor does what it is told, and how much of other effects it mixes in.

Images are (N, C, H, W) in [-1, 1].
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

DIFFERENT = 1e-3
"""Mean squared difference from which two targets are told apart."""


def leak(out: Tensor, own: Tensor, other: Tensor) -> Tensor:
    """(N,) how far from its own target an output goes towards another one: 0 not at all, 1 it is the other.

    <out - own, other - own> / |other - own|^2, which independent errors leave at 0 in the mean; NaN where both targets
    are the same.
    """
    direction = (other - own).double().flatten(1)
    square = direction.square().sum(1)
    along = ((out - own).double().flatten(1) * direction).sum(1) / square
    return torch.where(square / direction.shape[1] < DIFFERENT, torch.nan, along)


def bleeding(out: Tensor, own: Tensor, others: Sequence[Tensor]) -> float:
    """Mean over other effects of the mean leak towards their targets, each 0 at least; NaN without any other target."""
    means = torch.stack([leak(out, own, other).nanmean() for other in others]) if others else torch.tensor([torch.nan])
    return float(means.clamp(min=0).nanmean())
