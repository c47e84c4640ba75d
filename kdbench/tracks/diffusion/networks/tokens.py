"""How tokens are read: summed embeddings, or a sequence for cross-attention. Token 0 is the null of every slot."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from kdbench.errors import UsageError
from kdbench.tracks.diffusion.conditions import Condition
from kdbench.training.transformer import Block

DEPTH = 2
"""Layers of the encoder of prompts."""


def tokens_of(cond: Condition, slots: int, device: torch.device) -> Tensor:
    """(B, L) tokens of a condition, nulls where it has none.

    Raises ``UsageError`` for another number of slots, and for a text that is embedded already.
    """
    if cond.tokens is None and cond.embedding is not None:
        raise UsageError("the network reads tokens, and the condition has an embedded text alone")
    if cond.tokens is None:
        return torch.zeros(len(cond), slots, dtype=torch.int64, device=device)
    if cond.tokens.shape[1] != slots:
        raise UsageError(f"the network reads prompts of {slots} slots, not of {cond.tokens.shape[1]}")
    return cond.tokens


class Slots(nn.Module):
    """A table of embeddings for each slot: (B, L) tokens to (B, L, W). Unknown tokens raise ``IndexError``."""

    def __init__(self, vocabulary: Sequence[int], width: int) -> None:
        """``vocabulary``: tokens of each slot, null included."""
        super().__init__()
        self.tables = nn.ModuleList(nn.Embedding(size, width) for size in vocabulary)

    def forward(self, tokens: Tensor) -> Tensor:
        return torch.stack([table(tokens[:, slot]) for slot, table in enumerate(self.tables)], 1)


class SummedTokens(nn.Module):
    """Sum of the embeddings of all slots: a condition to (B, W)."""

    def __init__(self, vocabulary: Sequence[int], width: int) -> None:
        super().__init__()
        self.slots = Slots(vocabulary, width)

    def forward(self, cond: Condition) -> Tensor:
        tokens = tokens_of(cond, len(self.slots.tables), self.slots.tables[0].weight.device)
        total: Tensor = self.slots(tokens).sum(1)
        return total


class TokenEncoder(nn.Module):
    """A prompt as a sequence: embeddings with learned positions through two transformer layers, (B, L, W).

    A condition that brings its own embedding (B, L', W) is not encoded again.
    """

    def __init__(self, vocabulary: Sequence[int], width: int, heads: int = 4) -> None:
        """Raises ``ValueError`` where ``width`` is not a multiple of ``heads``."""
        super().__init__()
        self.slots = Slots(vocabulary, width)
        self.positions = nn.Parameter(torch.randn(len(vocabulary), width) * 0.02)
        self.layers = nn.ModuleList(Block(width, heads, 2 * width) for _ in range(DEPTH))
        self.norm = nn.LayerNorm(width)

    def forward(self, cond: Condition) -> Tensor:
        if cond.embedding is not None:
            return cond.embedding
        h = self.slots(tokens_of(cond, len(self.slots.tables), self.positions.device)) + self.positions
        for layer in self.layers:
            h = layer(h)
        encoded: Tensor = self.norm(h)
        return encoded
