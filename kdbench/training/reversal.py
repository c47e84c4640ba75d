"""Gradient reversal: a module that plays against the rest of the network (Ganin and Lempitsky, 2015)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class _Reverse(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: float) -> Tensor:
        ctx.weight = weight
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return -ctx.weight * gradients[0], None


def reverse_gradient(x: Tensor, weight: float = 1.0) -> Tensor:
    """``x`` itself, whose gradient is multiplied by ``-weight``: what minimises the loss behind it now maximises it."""
    result: Tensor = _Reverse.apply(x, weight)  # type: ignore[no-untyped-call]
    return result
