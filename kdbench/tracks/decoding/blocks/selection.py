"""Which tokens a draft is trained on: those where it has most to gain, compared with what its size can reach."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from kdbench.training.state import Values

Which = Literal["top", "lowest", "random"]
Normalise = Literal["kept", "all"]


@torch.no_grad()
def learnable(gap: Tensor, share: float, which: Which = "top", generator: torch.Generator | None = None) -> Tensor:
    """The ``share`` of tokens with the largest gap, (N,) to (N,) bool (Hu et al. 2025, AdaSPEC).

    ``top`` keeps those with ``gap >= quantile(gap, 1 - share)`` over all N tokens, so all of them at share 1;
    ``lowest`` those at the other end, ``random`` as many drawn from ``generator``. At least one token, ties with the
    threshold included.
    """
    if which == "random":
        if generator is None:
            raise ValueError("a random selection needs a generator")
        gap = torch.rand(len(gap), generator=generator).to(gap.device)
    elif which == "lowest":
        gap = -gap
    # not torch.quantile, which refuses more than 16 million values
    rank = (1 - share) * (len(gap) - 1)
    ordered = gap.float().sort().values
    below = int(rank)
    above = min(below + 1, len(gap) - 1)
    threshold = torch.lerp(ordered[below], ordered[above], rank - below)
    return gap.float() >= threshold


def selective_loss(values: Tensor, kept: Tensor, normalise: Normalise = "kept") -> Tensor:
    """A divergence (N,) over the ``kept`` tokens (N,), as a scalar.

    ``kept``: mean over them; ``all``: their sum over the number of all tokens, which is ``share`` times as much. Both
    are the mean of all values where every token is kept.
    """
    chosen = values[kept]
    return chosen.sum() / max(1, chosen.numel() if normalise == "kept" else values.numel())


class Looks(Values):
    """Selections of the same tokens in the course of training: how many of the selected ones are selected again."""

    kept = ("steps", "shares", "previous")

    def __init__(self) -> None:
        self.steps: list[int] = []
        self.shares: list[float] = []
        self.previous: Tensor | None = None

    def look(self, step: int, selected: Tensor) -> float | None:
        """Share of the tokens of the look before that are ``selected`` (N,) at ``step`` again; None at the first."""
        share = None
        if self.previous is not None:
            share = float((selected & self.previous).sum() / self.previous.sum().clamp_min(1))
            self.steps.append(step)
            self.shares.append(share)
        self.previous = selected
        return share


def histogram(gap: Tensor, bins: int = 24) -> dict[str, list[float] | float]:
    """Edges (bins + 1) in nats, counts (bins) and mean of a gap (N,).

    The bins are the middle 98 % of the values; what lies beyond is in the outer ones.
    """
    ordered = gap.float().cpu().sort().values
    low, high = ordered[len(gap) // 100].item(), ordered[len(gap) - 1 - len(gap) // 100].item()
    if low == high:
        low, high = low - 0.5, high + 0.5
    counts = torch.histc(ordered.clamp(low, high), bins, low, high)
    edges = torch.linspace(low, high, bins + 1, dtype=torch.float64)
    return {"edges": edges.tolist(), "counts": counts.tolist(), "mean": float(ordered.mean())}
