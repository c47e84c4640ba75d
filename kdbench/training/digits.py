"""Positions as strings of digits, and the network that reads them (Li et al. 2025, SeqPE).

A position of n dimensions is n groups of digits, each padded on the left to the same length.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from itertools import combinations

import numpy as np
import torch
from torch import Tensor, nn

from kdbench.errors import UsageError
from kdbench.training.transformer import Block, initialise


def digits_needed(limit: int, base: int = 10) -> int:
    """Digits of the largest position below ``limit``.

    >>> digits_needed(1000), digits_needed(1001), digits_needed(1)
    (3, 4, 1)
    """
    return len(np.base_repr(max(limit - 1, 0), base))


def digit_groups(positions: Tensor, digits: int, base: int = 10) -> tuple[Tensor, Tensor]:
    """Digits of positions (..., D): symbols (..., D * digits) int64, most significant first, and which are no padding.

    Padding on the left has the symbol 0 and is marked False, so that no two positions have the same pair. Raises
    ``ValueError`` for negative positions and those that need more digits.

    >>> symbols, present = digit_groups(torch.tensor([[40, 7]]), 3)
    >>> symbols.tolist(), present.tolist()
    ([[0, 4, 0, 0, 0, 7]], [[False, True, True, False, False, True]])
    """
    if positions.numel() and (int(positions.min()) < 0 or int(positions.max()) >= base**digits):
        raise ValueError(f"positions are from 0 to {base**digits - 1}: they have {digits} digits to base {base}")
    powers = base ** torch.arange(digits - 1, -1, -1, device=positions.device)
    shifted = positions[..., None].div(powers, rounding_mode="floor")
    present = shifted > 0
    present[..., -1] = True  # zero has one digit
    return (shifted % base).flatten(-2), present.flatten(-2)


class DigitEncoder(nn.Module):
    """A small causal transformer over the digits of a position; a last token gathers the vector.

    Input of each digit: its symbol, its place in the group and, with several dimensions, its group.
    """

    def __init__(
        self,
        *,
        limit: int,
        dims: int = 1,
        width: int = 32,
        layers: int = 2,
        heads: int = 4,
        out: int = 32,
        base: int = 10,
        mask_padding: bool = True,
    ) -> None:
        """``limit``: positions along each dimension are below it. ``out``: width of the vectors."""
        super().__init__()
        self.digits, self.base, self.dims, self.mask_padding = digits_needed(limit, base), base, dims, mask_padding
        self.symbols = nn.Embedding(base, width)
        self.places = nn.Embedding(self.digits, width)
        self.groups = nn.Embedding(dims, width) if dims > 1 else None
        self.blocks = nn.ModuleList(Block(width, heads, 4 * width) for _ in range(layers))
        self.norm, self.out = nn.LayerNorm(width), nn.Linear(width, out)
        initialise(self)
        self.last = nn.Parameter(0.02 * torch.randn(width))

    def forward(self, positions: Tensor) -> Tensor:
        """Vectors (..., out) of positions (..., D)."""
        symbols, present = digit_groups(positions.reshape(-1, self.dims), self.digits, self.base)
        place = torch.arange(symbols.shape[-1], device=symbols.device)
        x = self.symbols(symbols) + self.places(place % self.digits)
        if self.groups is not None:
            x = x + self.groups(place // self.digits)
        x = torch.cat([x, self.last.expand(len(x), 1, -1)], dim=1)
        mask = self._mask(present, x.dtype)
        for block in self.blocks:
            x = block(x, mask)
        vectors: Tensor = self.out(self.norm(x[:, -1]))
        return vectors.reshape(*positions.shape[:-1], -1)

    def _mask(self, present: Tensor, dtype: torch.dtype) -> Tensor:
        """(N, 1, T, T): 0 where a token may look, else -inf. Padding sees itself, for it must see something."""
        length = present.shape[-1] + 1
        may = torch.ones(length, length, dtype=torch.bool, device=present.device).tril()
        if self.mask_padding:
            keys = torch.cat([present, present.new_ones(len(present), 1)], dim=1)
            may = (may & keys[:, None]) | torch.eye(length, dtype=torch.bool, device=present.device)
        else:
            may = may[None]
        return torch.zeros(may.shape, dtype=dtype, device=may.device).masked_fill(~may, -torch.inf)[:, None]


# --- samples for the losses -------------------------------------------------------------------------------------------


def _inserted(text: str, base: int) -> list[str]:
    return [text[:i] + np.base_repr(d, base) + text[i:] for i in range(len(text) + 1) for d in range(base)]


def _deleted(text: str, base: int) -> list[str]:
    return [text[:i] + text[i + 1 :] for i in range(len(text)) if len(text) > 1]


def _swapped(text: str, base: int) -> list[str]:
    return [
        text[:i] + text[j] + text[i + 1 : j] + text[i] + text[j + 1 :] for i, j in combinations(range(len(text)), 2)
    ]


def _replaced(text: str, base: int) -> list[str]:
    return [text[:i] + np.base_repr(d, base) + text[i + 1 :] for i in range(len(text)) for d in range(base)]


EDITS: dict[str, Callable[[str, int], list[str]]] = {
    "insert": _inserted,
    "delete": _deleted,
    "swap": _swapped,
    "replace": _replaced,
}


@lru_cache(maxsize=1 << 15)
def edits(value: int, limit: int, base: int = 10) -> tuple[tuple[int, ...], ...]:
    """Other positions below ``limit`` that one edit of the digits makes of ``value``, in the order of :data:`EDITS`.

    Strings with leading zeros are no positions.

    >>> edits(10, 20)
    ((), (1,), (), (11, 12, 13, 14, 15, 16, 17, 18, 19))
    """
    text = np.base_repr(value, base)
    made = []
    for change in EDITS.values():
        texts = {other for other in change(text, base) if other[0] != "0" or other == "0"}
        values = {int(other, base) for other in texts}
        made.append(tuple(sorted(v for v in values if v < limit and v != value)))
    return tuple(made)


class Candidates:
    """Candidates for a pivot position, of which the nearest is to be told, for the contrastive loss.

    With probability ``window_rate`` they are drawn from a random window of ``window`` neighbouring positions, which
    teaches small differences. Otherwise they are drawn from all positions, and a share ``hard`` of them are made by one
    to three edits of the pivot's digits and lie farther away than the nearest other candidate: strings that look alike
    and positions that are far apart.
    """

    def __init__(
        self,
        rng: np.random.Generator,
        *,
        limit: int,
        dims: int = 1,
        count: int = 32,
        window: int = 256,
        window_rate: float = 0.6,
        hard: float = 0.25,
        base: int = 10,
    ) -> None:
        """``limit``: positions along each dimension are below it. Raises ``UsageError`` where that is too few."""
        if limit**dims < 2 * (count + 1):
            raise UsageError(f"{limit**dims} positions are too few to draw {count} candidates from")
        self.rng, self.limit, self.dims, self.count, self.base = rng, limit, dims, count, base
        side = round(max(window, 2 * (count + 1)) ** (1 / dims))
        while side**dims < 2 * (count + 1):
            side += 1
        self.side = min(side, limit)
        self.window_rate, self.hard = window_rate, int(hard * count)

    def draw(self, pivots: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Pivots (B, D), candidates (B, N, D), all of a row distinct, and the nearest candidate of each row (B,)."""
        chosen = self.rng.integers(self.limit, size=(pivots, self.dims))
        near = self.rng.random(pivots) < self.window_rate
        rows = [self.windowed(p) if w else self.uniform(p) for p, w in zip(chosen, near, strict=True)]
        candidates = np.stack(rows)
        return chosen, candidates, square_distances(chosen[:, None], candidates).argmin(axis=1)

    def windowed(self, pivot: np.ndarray) -> np.ndarray:
        """(N, D) from one random window, which need not contain the pivot."""
        start = self.rng.integers(self.limit - self.side + 1, size=self.dims)
        points: np.ndarray = start + self._distinct(self.side, self.count, pivot - start)
        return points

    def uniform(self, pivot: np.ndarray) -> np.ndarray:
        """(N, D) from everywhere, edited pivots among them."""
        plain = self._distinct(self.limit, self.count, pivot)
        kept = plain[: self.count - self.hard]
        nearest = square_distances(pivot, kept).min()
        looks = [self.look_alike(pivot) for _ in range(self.hard)]
        far = [row for row in looks if square_distances(pivot, row) > nearest]
        merged = dict.fromkeys(tuple(row.tolist()) for row in (*far, *plain))
        return np.array(list(merged)[: self.count])

    def look_alike(self, pivot: np.ndarray) -> np.ndarray:
        """A position whose digits are one to three edits away from the pivot's."""
        value = pivot.copy()
        for _ in range(int(self.rng.integers(1, 4))):
            axis = int(self.rng.integers(self.dims))
            kinds = [found for found in edits(int(value[axis]), self.limit, self.base) if found]
            if kinds:
                options = kinds[int(self.rng.integers(len(kinds)))]
                value[axis] = options[int(self.rng.integers(len(options)))]
        return value

    def _distinct(self, side: int, count: int, without: np.ndarray) -> np.ndarray:
        """(N, D) distinct points of a cube of ``side``, none of them ``without``."""
        shape = (side,) * self.dims
        flat = self.rng.choice(side**self.dims, size=count + 1, replace=False)
        points: np.ndarray = np.stack(np.unravel_index(flat, shape), axis=-1)
        kept: np.ndarray = points[(points != without).any(axis=-1)][:count]
        return kept


def square_distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Squared Euclidean distances of positions (..., D), broadcast."""
    found: np.ndarray = np.square(a - b).sum(axis=-1)
    return found


class Windows:
    """Windows of positions beyond those of training, and a sample of places in them."""

    def __init__(
        self, rng: np.random.Generator, *, limit: int, extent: tuple[int, ...], count: int, beyond: float = 1.0
    ) -> None:
        """``extent``: positions of training along each dimension.

        A window is shifted by at least ``beyond`` times the extent along one dimension. Raises ``UsageError`` where
        no window lies within ``limit``.
        """
        self.rng, self.extent, self.count = rng, np.array(extent), min(count, int(np.prod(extent)))
        self.largest, self.least = limit - self.extent, np.maximum(1, np.round(beyond * self.extent))
        if (self.largest < 0).any() or (self.largest < self.least).all():
            raise UsageError(f"no window of {extent} positions lies {beyond:g} times as far out and below {limit}")

    def draw(self, windows: int) -> tuple[np.ndarray, np.ndarray]:
        """Positions within training (B, n, D), and the same places of a shifted window (B, n, D)."""
        places = np.stack([self.rng.choice(int(self.extent.prod()), self.count, replace=False) for _ in range(windows)])
        inside = np.stack(np.unravel_index(places, tuple(self.extent)), axis=-1)
        starts = np.stack([self._start() for _ in range(windows)])
        return inside, inside + starts[:, None]

    def _start(self) -> np.ndarray:
        while True:
            start: np.ndarray = self.rng.integers(self.largest + 1)
            if (start >= self.least).any():
                return start
