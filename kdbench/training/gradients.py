"""Gradients of several losses of one network: how they agree, and what aligns one with another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn


def flat_gradient(loss: Tensor, parameters: Sequence[nn.Parameter]) -> Tensor:
    """Gradient of a scalar loss as one vector (P,); zeros for parameters that the loss does not depend on.

    The graph stays, and no ``grad`` of a parameter changes.
    """
    found = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
    zipped = zip(found, parameters, strict=True)
    return torch.cat([(torch.zeros_like(p) if g is None else g).flatten() for g, p in zipped]).detach()


def balanced(parts: Mapping[str, Tensor], parameters: Sequence[nn.Parameter]) -> dict[str, Tensor]:
    """Terms scaled by the inverse norms of their gradients in ``parameters``, the scales summing to one."""
    scales = torch.stack([1 / (flat_gradient(part, parameters).norm() + 1e-8) for part in parts.values()])
    scales = scales / scales.sum()
    return {name: scale * part for (name, part), scale in zip(parts.items(), scales, strict=True)}


def cosine(a: Tensor, b: Tensor) -> Tensor:
    """Cosine of two vectors (P,), a scalar; 0 where one of them is 0."""
    return torch.nn.functional.cosine_similarity(a, b, dim=0, eps=1e-12)


def conflict(gradient: Tensor, reference: Tensor) -> Tensor:
    """The c <= 0 for which ``gradient - c reference`` is no longer against ``reference``; (P,), (P,) to a scalar.

    c = min(<g, r>, 0) / |r|^2, the coefficient of gradient surgery (Yu et al., NeurIPS 2020, algorithm 1) with a fixed
    reference; 0 where the two agree or the reference is 0. As r is the gradient of a loss R, taking -c R into the sum
    of losses, with c as a constant, projects g.
    """
    squared = reference.square().sum()
    return (gradient @ reference).clamp(max=0) / squared.clamp(min=torch.finfo(squared.dtype).tiny)
