"""Mixtures of experts in the place of a perceptron, with the router apart from what the experts read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F


@dataclass
class Routing:
    """Which experts rows use, and how much of each."""

    weights: Tensor
    """(R, E): shares of the chosen experts, which sum to 1; 0 for the others."""
    importance: Tensor
    """(E,) mean share."""
    load: Tensor
    """(E,) fraction of the rows that chose the expert; sums to k."""

    def balance(self) -> Tensor:
        """E sum_e importance_e load_e: k where all experts are used alike, more where they are not."""
        return len(self.load) * (self.importance * self.load).sum()


def balance(routings: Sequence[Routing]) -> Tensor:
    """Mean of the balance losses of several blocks."""
    return torch.stack([routing.balance() for routing in routings]).mean()


def route(logits: Tensor, k: int, *, sampled: bool) -> Routing:
    """k of E experts for each row of ``logits`` (R, E): drawn without replacement, or the most probable ones.

    Draws come from the global generator of the device.
    """
    shares = logits.to(torch.promote_types(logits.dtype, torch.float32)).softmax(-1)
    if sampled:
        chosen = torch.multinomial(shares.detach(), k, replacement=False)
    else:
        chosen = shares.topk(k, -1).indices
    mask = torch.zeros_like(shares).scatter(-1, chosen, 1.0)
    weights = shares * mask
    weights = weights / weights.sum(-1, keepdim=True)
    return Routing(weights, weights.mean(0), mask.mean(0))


class Perceptron(nn.Module):
    """Two layers with GELU and no biases, so that several can be fused into one."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.rise, self.fall = nn.Linear(width, hidden, bias=False), nn.Linear(hidden, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.fall(F.gelu(self.rise(x)))


class TopKMoE(nn.Module):
    """sum_e p_e MLP_e(x) over k of E experts, chosen by a router that reads an input of its own."""

    def __init__(self, width: int, hidden: int, experts: int, k: int) -> None:
        """``hidden``: of each expert. Raises ``ValueError`` unless 1 <= k <= E."""
        super().__init__()
        if not 1 <= k <= experts:
            raise ValueError(f"k is between 1 and the {experts} experts, not {k}")
        self.k = k
        self.experts = nn.ModuleList([Perceptron(width, hidden) for _ in range(experts)])
        self.router = (
            nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, experts)) if experts > 1 else None
        )

    def routing(self, router_input: Tensor, *, sampled: bool) -> Routing:
        """Choices for rows (R, D) of what the router reads."""
        logits = router_input.new_zeros(len(router_input), 1) if self.router is None else self.router(router_input)
        return route(logits, self.k, sampled=sampled)

    def forward(self, x: Tensor, routing: Routing) -> Tensor:
        """x (B, T, D); the routing has B rows, one for each sequence, or B T, one for each token."""
        batch, length, width = x.shape
        rows = x if len(routing.weights) == batch else x.reshape(batch * length, 1, width)
        out = torch.zeros_like(rows)
        for number, expert in enumerate(self.experts):
            share = routing.weights[:, number]
            used = torch.nonzero(share).flatten()
            if len(used):
                out = out.index_add(0, used, share[used, None, None].to(x.dtype) * expert(rows[used]))
        return out.view_as(x)

    @torch.no_grad()
    def fused(self, router_input: Tensor) -> Perceptron:
        """One perceptron that is what the experts chosen for one row (1, D) make together, shares included."""
        weights = self.routing(router_input, sampled=False).weights[0]
        used = torch.nonzero(weights).flatten().tolist()
        parts = [self.experts[number] for number in used]
        rise = torch.cat([part.rise.weight for part in parts])  # type: ignore[union-attr]
        fall = torch.cat([weights[number] * self.experts[number].fall.weight for number in used], 1)  # type: ignore[union-attr,operator]
        made = Perceptron(rise.shape[1], rise.shape[0]).to(rise)
        made.rise.weight.copy_(rise)
        made.fall.weight.copy_(fall)
        return made.requires_grad_(False).eval()
