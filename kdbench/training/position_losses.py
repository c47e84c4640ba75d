"""The two losses that shape vectors of positions while a network trains, and what they come to (SeqPE)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from kdbench.losses.positions import nearness_logits, position_contrast, position_transfer
from kdbench.training.digits import Candidates, Windows, digit_groups
from kdbench.training.positions import PositionEncoding
from kdbench.training.state import Values


@dataclass(frozen=True)
class PositionOptions:
    """How positions are sampled and compared; meanings as in :class:`Candidates` and :class:`Windows`."""

    contrast: float = 0.1
    """Weight of the contrastive loss."""
    transfer: float = 0.1
    """Weight of the transfer loss."""
    per_head: bool = True
    pivots: int = 4
    candidates: int = 32
    window: int = 256
    window_rate: float = 0.6
    hard: float = 0.25
    windows: int = 4
    offsets: int = 32
    outside: float = 1.0
    """Least shift of a window, as a share of the positions of training."""
    metric: Literal["kl", "mse"] = "kl"
    scale: float = 1.0
    """Factor of the similarities in the transfer loss."""
    shift_rate: float = 0.1
    """Probability that a step of training gets shifted positions."""


class PositionLosses(Values):
    """Both losses of an encoding at one step of training; weights rise linearly over the first ``warmup`` steps."""

    kept = ("step",)

    def __init__(
        self, encoding: PositionEncoding, options: PositionOptions, rng: np.random.Generator, warmup: int = 0
    ) -> None:
        """Raises ``UsageError`` where the positions are too few for the candidates or the windows asked for."""
        self.encoding, self.options, self.rng, self.warmup = encoding, options, rng, warmup
        self.step = 0
        self.heads = encoding.heads if options.per_head else 1
        limit, extent = encoding.limit, encoding.extent
        self.candidates, self.windows = None, None
        if options.contrast:
            self.candidates = Candidates(
                rng,
                limit=limit,
                dims=len(extent),
                count=options.candidates,
                window=options.window,
                window_rate=options.window_rate,
                hard=options.hard,
                base=encoding.encoder.base if encoding.kind == "seqpe" else 10,
            )
        if options.transfer:
            self.windows = Windows(rng, limit=limit, extent=extent, count=options.offsets, beyond=options.outside)

    def __call__(self) -> dict[str, Tensor]:
        """``contrast`` and ``transfer``, each times its weight; those whose weight is 0 are left out."""
        self.step += 1
        rise = min(1.0, self.step / self.warmup) if self.warmup else 1.0
        parts = {}
        if self.candidates is not None:
            pivots, candidates, nearest = self._tensors(*self.candidates.draw(self.options.pivots))
            vectors = self.encoding.vectors(torch.cat([pivots[:, None], candidates], dim=1))
            value = position_contrast(vectors[:, 0], vectors[:, 1:], nearest, heads=self.heads)
            parts["contrast"] = rise * self.options.contrast * value
        if self.windows is not None:
            parts["transfer"] = rise * self.options.transfer * self.transfer(self.windows)
        return parts

    def transfer(self, windows: Windows) -> Tensor:
        """The transfer loss of random windows, without its weight."""
        inside, outside = self._tensors(*windows.draw(self.options.windows))
        with torch.no_grad():
            teacher = self.encoding.vectors(inside)
        return position_transfer(
            teacher,
            self.encoding.vectors(outside),
            heads=self.heads,
            scale=self.options.scale,
            metric=self.options.metric,
        )

    def shift(self) -> np.ndarray:
        """Where the positions of this step begin, (D,): zeros, or with the rate of shifts anywhere within the limit."""
        extent = np.array(self.encoding.extent)
        if self.rng.random() >= self.options.shift_rate:
            return np.zeros_like(extent)
        return self.rng.integers(self.encoding.limit - extent + 1)

    def _tensors(self, *arrays: np.ndarray) -> tuple[Tensor, ...]:
        device = next((p.device for p in self.encoding.parameters()), torch.device("cpu"))
        return tuple(torch.from_numpy(array).to(device) for array in arrays)


@torch.no_grad()
def nearness_accuracy(
    encoding: PositionEncoding, options: PositionOptions, rng: np.random.Generator, *, pivots: int = 128
) -> dict[str, float]:
    """How often the nearest candidate has the largest dot product, in [0, 1].

    ``contrast_accuracy`` of the mixture that training draws, and of each part: candidates from a window
    (``.../window``), and from everywhere with edited pivots among them (``.../edits``). Heads are asked alone.
    """
    heads, dims = encoding.heads if options.per_head else 1, len(encoding.extent)
    device = next(encoding.parameters()).device
    found = {}
    rates = {"/window": 1.0, "/edits": 0.0, "": options.window_rate}
    for name, rate in rates.items():
        source = Candidates(
            rng,
            limit=encoding.limit,
            dims=dims,
            count=options.candidates,
            window=options.window,
            window_rate=rate,
            hard=options.hard,
            base=encoding.encoder.base if encoding.kind == "seqpe" else 10,
        )
        chosen, candidates, nearest = (torch.from_numpy(part).to(device) for part in source.draw(pivots))
        vectors = encoding.vectors(torch.cat([chosen[:, None], candidates], dim=1))
        best = nearness_logits(vectors[:, 0], vectors[:, 1:], heads).argmax(-1)
        found[f"contrast_accuracy{name}"] = float((best == nearest[:, None]).double().mean())
    return found


@torch.no_grad()
def similarity_by_distance(
    encoding: PositionEncoding, options: PositionOptions, rng: np.random.Generator
) -> tuple[dict[str, list[Any]], float]:
    """Mean dot product of vectors by the distance of their positions along the first dimension, and the transfer loss.

    The table has one row for each window of the length of training, at ``starts``: within training and ever farther
    out. The loss is the mean over 32 windows, without a weight.
    """
    device = next((p.device for p in encoding.parameters()), torch.device("cpu"))
    length, dims = encoding.extent[0], len(encoding.extent)
    starts = [n * length for n in (0, 1, 3, 7, 15) if (n + 1) * length <= encoding.limit]
    rows = []
    for start in starts:
        positions = torch.zeros(length, dims, dtype=torch.int64, device=device)
        positions[:, 0] = start + torch.arange(length, device=device)
        vectors = encoding.vectors(positions)
        products = vectors @ vectors.T
        rows.append([float(products.diagonal(distance).mean()) for distance in range(length)])
    options = replace(options, contrast=0.0, transfer=1.0, windows=32)
    losses = PositionLosses(encoding, options, rng)
    assert losses.windows is not None
    return {"starts": starts, "mean_dot_product": rows}, float(losses.transfer(losses.windows))


def collisions(encoding: PositionEncoding) -> int:
    """Positions below the limit, along one dimension, whose digits another has too: 0, for the code is injective."""
    symbols, present = digit_groups(
        torch.arange(encoding.limit)[:, None], encoding.encoder.digits, encoding.encoder.base
    )
    codes = torch.cat([symbols, present.long()], dim=-1)
    return len(codes) - len(torch.unique(codes, dim=0))
