"""Fewer visual tokens for a draft: prune, pool, convolve, resample, or a choice among these for each input.

SpecVLM (Huang et al., 2025) shortens the visual prefix of the draft alone, so that what the target sees, and therefore
what is written, stays as it is. The routing follows the paper's outline: a gate that knows the question takes one way
per input, with Gumbel noise and straight-through gradients while it trains and the best one afterwards; the shape of
the gate and the price of a way are our reading.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdbench.errors import UsageError, did_you_mean


class Compressed(NamedTuple):
    """Visual tokens that are left, rows of fewer filled up on the right."""

    tokens: Tensor
    """(B, M, D)."""
    positions: Tensor
    """(B, M) float32: where they are in the sequence; those that stand for several lie between them."""
    present: Tensor
    """(B, M) bool."""
    price: Tensor
    """() mean price of the ways that were taken, as a fraction of that of all visual tokens, with gradient."""
    choice: Tensor
    """(B,) int64: which of the ways, 0 where there is but one."""


class Primitive(nn.Module):
    """One way to compress; parameters are for tokens of ``width`` numbers."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width

    def left(self, count: int) -> int:
        """Tokens that are left of ``count``."""
        return count

    def own_flops(self, count: int) -> float:
        """FLOPs of compressing ``count`` tokens of one row."""
        return 0.0

    def forward(self, visual: Tensor, positions: Tensor, question: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens (B, M, D) and positions (B, M) of ``visual`` (B, N, D) at ``positions`` (B, N).

        ``question`` (B, D) is the mean of the question's tokens.
        """
        return visual, positions


class Drop(Primitive):
    """No visual token at all: a draft that reads the text alone."""

    def left(self, count: int) -> int:
        return 0

    def forward(self, visual: Tensor, positions: Tensor, question: Tensor) -> tuple[Tensor, Tensor]:
        return visual[:, :0], positions[:, :0]


class Prune(Primitive):
    """The share of tokens that fits the question best, in their order.

    The score of a token v is ``(A question) . (B v) / sqrt(D)``. Kept tokens are scaled by ``2 sigmoid(score)``: the
    score learns through that factor.
    """

    def __init__(self, width: int, share: float) -> None:
        super().__init__(width)
        self.share = share
        self.ask, self.key = nn.Linear(width, width, bias=False), nn.Linear(width, width, bias=False)

    def left(self, count: int) -> int:
        return max(1, round(self.share * count))

    def own_flops(self, count: int) -> float:
        return 2.0 * self.width * self.width * (count + 1) + 2.0 * self.width * count

    def forward(self, visual: Tensor, positions: Tensor, question: Tensor) -> tuple[Tensor, Tensor]:
        score = (self.key(visual) @ self.ask(question)[:, :, None]).squeeze(-1) / math.sqrt(self.width)
        kept = score.topk(self.left(visual.shape[1]), dim=1).indices.sort(dim=1).values
        chosen = visual.gather(1, kept[..., None].expand(-1, -1, self.width))
        return chosen * (2 * score.gather(1, kept).sigmoid())[..., None], positions.gather(1, kept)


def as_grid(values: Tensor) -> Tensor:
    """Values (B, N, C) of visual tokens, in reading order, as a picture (B, C, S, S).

    Raises ``UsageError`` unless N is a square of an even number.
    """
    side = math.isqrt(values.shape[1])
    if side * side != values.shape[1] or side % 2:
        raise UsageError(f"visual tokens are merged on a square of even sides: {values.shape[1]} are no such square")
    return values.transpose(1, 2).unflatten(2, (side, side))


class Pool(Primitive):
    """Means of squares of 2 x 2 tokens."""

    def left(self, count: int) -> int:
        return count // 4

    def own_flops(self, count: int) -> float:
        return float(self.width * count)

    def forward(self, visual: Tensor, positions: Tensor, question: Tensor) -> tuple[Tensor, Tensor]:
        tokens, places = F.avg_pool2d(as_grid(visual), 2), F.avg_pool2d(as_grid(positions[..., None]), 2)
        return tokens.flatten(2).transpose(1, 2), places.flatten(1)


class Conv(Primitive):
    """A depthwise convolution of 3 x 3 with stride 2, which begins as a mean."""

    def __init__(self, width: int) -> None:
        super().__init__(width)
        self.conv = nn.Conv2d(width, width, 3, stride=2, padding=1, groups=width)
        nn.init.constant_(self.conv.weight, 1 / 9)
        nn.init.zeros_(self.conv.bias)

    def left(self, count: int) -> int:
        return count // 4

    def own_flops(self, count: int) -> float:
        return 2.0 * 9 * self.width * (count // 4)

    def forward(self, visual: Tensor, positions: Tensor, question: Tensor) -> tuple[Tensor, Tensor]:
        places = F.avg_pool2d(as_grid(positions[..., None]), 2)
        return self.conv(as_grid(visual)).flatten(2).transpose(1, 2), places.flatten(1)


class Resampler(Primitive):
    """Learned queries that attend to the visual tokens once (as of Alayrac et al., NeurIPS 2022)."""

    def __init__(self, width: int, queries: int, heads: int) -> None:
        super().__init__(width)
        self.queries = nn.Parameter(torch.randn(queries, width) * width**-0.5)
        self.norm, self.attention = nn.LayerNorm(width), nn.MultiheadAttention(width, heads, batch_first=True)

    def left(self, count: int) -> int:
        return len(self.queries)

    def own_flops(self, count: int) -> float:
        width, queries = self.width, len(self.queries)
        return 2.0 * width * width * (2 * count + 2 * queries) + 4.0 * width * queries * count

    def forward(self, visual: Tensor, positions: Tensor, question: Tensor) -> tuple[Tensor, Tensor]:
        asked = self.queries.expand(len(visual), -1, -1)
        keys = self.norm(visual)
        tokens = asked + self.attention(asked, keys, keys, need_weights=False)[0]
        first, last = positions[:, :1], positions[:, -1:]
        return tokens, first + (last - first) * torch.linspace(0, 1, len(self.queries), device=visual.device)


WAYS = ("none", "drop", "prune", "pool", "conv", "resampler")
"""Names of the primitives."""
ELASTIC = ("prune", "pool", "conv", "resampler")
"""What the elastic compressor chooses from."""


def primitive(name: str, width: int, *, share: float, queries: int, heads: int) -> Primitive:
    """A primitive by its name. Raises ``UsageError`` for another name."""
    if name not in WAYS:
        raise UsageError(f"no way to compress is called {name!r}", hint=did_you_mean(name, WAYS))
    if name == "prune":
        return Prune(width, share)
    if name == "resampler":
        return Resampler(width, queries, heads)
    return {"none": Primitive, "drop": Drop, "pool": Pool, "conv": Conv}[name](width)


class Compressor(nn.Module):
    """One primitive, or several and a router that takes one of them for each input.

    The router is ``softmax(W [mean visual; mean question])``. While it trains, the way of a row is the best one after
    Gumbel noise, and the gradient is that of the softmax (straight-through; Jang et al., ICLR 2017); afterwards it is
    the best one.
    """

    def __init__(
        self,
        ways: tuple[str, ...],
        width: int,
        *,
        token_flops: float,
        share: float = 0.25,
        queries: int = 8,
        heads: int = 4,
        temperature: float = 1.0,
    ) -> None:
        """``token_flops``: what one token costs the draft that reads it."""
        super().__init__()
        self.names, self.token_flops, self.temperature = ways, token_flops, temperature
        self.ways = nn.ModuleList(primitive(way, width, share=share, queries=queries, heads=heads) for way in ways)
        self.router = nn.Linear(2 * width, len(ways)) if len(ways) > 1 else None

    def flops(self, way: int, count: int) -> float:
        """FLOPs of a row of ``count`` visual tokens that goes one way: compressing it and reading what is left."""
        chosen = self.ways[way]
        router = 0.0 if self.router is None else 2.0 * self.router.in_features * self.router.out_features
        return router + chosen.own_flops(count) + self.token_flops * chosen.left(count)

    def prices(self, count: int) -> Tensor:
        """(W,) price of each way: its FLOPs as a fraction of those of reading all ``count`` visual tokens."""
        return torch.tensor([self.flops(way, count) / (self.token_flops * count) for way in range(len(self.ways))])

    def forward(
        self, visual: Tensor, positions: Tensor, question: Tensor, generator: torch.Generator | None = None
    ) -> Compressed:
        """``visual`` (B, N, D) at ``positions`` (B, N); ``question`` (B, D). ``generator`` is where noise comes from.

        Raises ``ValueError`` where a router trains without a generator.
        """
        rows, count, _ = visual.shape
        prices = self.prices(count).to(visual.device)
        positions = positions.float()
        if self.router is None:
            tokens, places = self.ways[0](visual, positions, question)
            whole = torch.ones(tokens.shape[:2], dtype=torch.bool, device=visual.device)
            return Compressed(tokens, places, whole, prices[0], whole.new_zeros(rows, dtype=torch.int64))
        logits = self.router(torch.cat([visual.mean(dim=1), question], dim=1)).float()
        if not self.training:
            return self._each(visual, positions, question, logits.argmax(dim=1), prices)
        if generator is None:
            raise ValueError("a router that trains needs a generator for its noise")
        uniform = torch.rand(logits.shape, generator=generator).clamp_(1e-9, 1 - 1e-7).to(logits.device)
        soft = ((logits - (-uniform.log()).log()) / self.temperature).softmax(dim=1)
        choice = soft.argmax(dim=1)
        gates = F.one_hot(choice, len(self.ways)).to(soft.dtype) + soft - soft.detach()
        widest = max(way.left(count) for way in self.ways)
        outputs = [way(visual, positions, question) for way in self.ways]
        padded = torch.stack([F.pad(tokens, (0, 0, 0, widest - tokens.shape[1])) for tokens, _ in outputs], dim=1)
        places = torch.stack([F.pad(place, (0, widest - place.shape[1])) for _, place in outputs], dim=1)
        tokens = (gates[:, :, None, None].to(padded.dtype) * padded).sum(dim=1)
        present = self._present(choice, count, widest)
        chosen = places[torch.arange(rows, device=choice.device), choice]
        return Compressed(tokens, chosen, present, (gates * prices).sum(dim=1).mean(), choice)

    def _present(self, choice: Tensor, count: int, widest: int) -> Tensor:
        left = torch.tensor([way.left(count) for way in self.ways], device=choice.device)
        return torch.arange(widest, device=choice.device) < left[choice][:, None]

    def _each(self, visual: Tensor, positions: Tensor, question: Tensor, choice: Tensor, prices: Tensor) -> Compressed:
        """Every row its own way, and no way for rows that do not take it."""
        rows, count, width = visual.shape
        taken = choice.unique().tolist()
        widest = max(self.ways[way].left(count) for way in taken)
        tokens, places = visual.new_zeros(rows, widest, width), positions.new_zeros(rows, widest)
        for way in taken:
            mine = (choice == way).nonzero().squeeze(1)
            some, where = self.ways[way](visual[mine], positions[mine], question[mine])
            tokens[mine, : some.shape[1]], places[mine, : some.shape[1]] = some, where
        return Compressed(tokens, places, self._present(choice, count, widest), prices[choice].mean(), choice)
