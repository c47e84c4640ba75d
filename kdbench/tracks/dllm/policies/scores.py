"""How sure a prediction is: four scores between 0 and 1, and what is made of their order."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

if TYPE_CHECKING:
    from kdbench.tracks.dllm.decoding import View

Order = Literal["confidence", "margin", "entropy", "random"]


def score(view: View, order: Order) -> Tensor:
    """(B, L) scores of the candidates, -inf elsewhere.

    ``confidence``: probability of the prediction; ``margin``: that of the most probable token less that of the second;
    ``entropy``: 1 - H / log V of the distribution; ``random``: uniform numbers from ``view.generator``.
    Raises ``ValueError`` for ``random`` without a generator.
    """
    if order == "confidence":
        return view.conf
    if order == "margin":
        top = view.probs.topk(2, dim=-1).values
        values = top[..., 0] - top[..., 1]
    elif order == "entropy":
        values = 1 + torch.xlogy(view.probs, view.probs).sum(dim=-1) / math.log(view.probs.shape[-1])
    else:
        if view.generator is None:
            raise ValueError("a random order needs a generator")
        values = torch.rand(view.conf.shape, generator=view.generator).to(view.conf)
    return values.to(view.conf.dtype).masked_fill(~view.candidates, -torch.inf)


def ranks(scores: Tensor) -> Tensor:
    """(B, L) int64: 0 for the largest score of a row; of equal ones the left one comes first."""
    order = scores.argsort(dim=1, descending=True, stable=True)
    places = torch.arange(scores.shape[1], device=scores.device).expand_as(order)
    return torch.empty_like(order).scatter(1, order, places)


def first(scores: Tensor, count: Tensor, candidates: Tensor) -> Tensor:
    """(B, L) bool: of each row the ``count`` (B,) candidates with the largest scores, all where there are fewer."""
    return (ranks(scores) < count[:, None]) & candidates


def best(scores: Tensor, candidates: Tensor) -> Tensor:
    """(B, L) bool: the candidate of each row with the largest score."""
    return first(scores, torch.ones(len(scores), dtype=torch.int64, device=scores.device), candidates)
