"""Attention that other code can look into: its logits, its output before the projection, keys and values by name.

Written out rather than called as a fused kernel, so that second derivatives and forward-mode derivatives exist (R1
penalties, flow maps); there are 64 tokens at most.
"""

from __future__ import annotations

from torch import Tensor, nn


class Attention(nn.Module):
    """Attention with several heads, to the tokens themselves or to a context. The output projection starts at zero
    where ``zero`` is given."""

    def __init__(self, width: int, heads: int, context: int | None = None, *, zero: bool = False) -> None:
        """``context``: width of the tokens that are attended to; None: self-attention.

        Raises ``ValueError`` where ``width`` is not a multiple of ``heads``.
        """
        super().__init__()
        if width % heads:
            raise ValueError(f"width {width} is not a multiple of heads {heads}")
        self.heads = heads
        source = width if context is None else context
        self.query, self.key, self.value = nn.Linear(width, width), nn.Linear(source, width), nn.Linear(source, width)
        self.proj = nn.Linear(width, width)
        if zero:
            nn.init.zeros_(self.proj.weight)
            nn.init.zeros_(self.proj.bias)

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)

    def logits(self, h: Tensor, context: Tensor | None = None) -> Tensor:
        """(B, heads, N, M) scaled products of queries and keys, before the softmax."""
        source = h if context is None else context
        q, k = self._heads(self.query(h)), self._heads(self.key(source))
        return q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5

    def mix(self, h: Tensor, context: Tensor | None = None) -> Tensor:
        """(B, N, W) values weighed by attention, before the output projection."""
        source = h if context is None else context
        mixed = self.logits(h, context).softmax(-1) @ self._heads(self.value(source))
        return mixed.transpose(1, 2).flatten(-2)

    def forward(self, h: Tensor, context: Tensor | None = None) -> Tensor:
        """``h`` (B, N, W), ``context`` (B, M, C); (B, N, W)."""
        out: Tensor = self.proj(self.mix(h, context))
        return out


def divisor(width: int, most: int) -> int:
    """The largest number up to ``most`` (and at least 1) that divides ``width``: heads, groups."""
    return next(count for count in range(max(1, most), 0, -1) if width % count == 0)
