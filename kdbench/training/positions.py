"""Position encodings of a transformer, interchangeable: learned, sinusoidal, RoPE, ALiBi, none, and SeqPE.

Positions have any number of dimensions. SeqPE and learned tables take them as they are; sinusoidal, RoPE and ALiBi are
made for one dimension and get the row-major index of a grid with ``limit`` positions along each.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdbench.errors import UsageError
from kdbench.losses.positions import split_heads
from kdbench.training.digits import DigitEncoder
from kdbench.training.transformer import Adapt, initialise

Encoding = Literal["seqpe", "learned", "sinusoidal", "rope", "alibi", "none"]
Use = Literal["attn_scalar", "attn_mul", "attn_add", "input_add"]
Maps = Literal["shared", "per_layer", "none"]
Beyond = Literal["interpolate", "extend"]

STRETCH = {1: "linear", 2: "bicubic", 3: "trilinear"}


class Encoded:
    """What an encoding says of one batch of positions."""

    def __init__(
        self,
        added: Tensor | None = None,
        bias: Callable[[int], Tensor | None] = lambda layer: None,
        adapt: Callable[[int], Adapt | None] = lambda layer: None,
    ) -> None:
        self.added = added
        """(G, T, width) to add to the inputs."""
        self.bias = bias
        """Of a layer: (G, heads, T, S) to add to the scaled products of queries and keys."""
        self.adapt = adapt
        """Of a layer: the change of its queries and keys."""


class PositionEncoding(nn.Module):
    """One of the encodings for a transformer of ``layers`` blocks.

    SeqPE reads the digits of a position into a vector e (:class:`~kdbench.training.digits.DigitEncoder`), and ``use``
    says what becomes of it: with per-head maps e -> (e_q, e_k), ``attn_scalar`` adds e_q . e_k / sqrt(d) to the scaled
    products, ``attn_mul`` and ``attn_add`` multiply or add e_q and e_k to queries and keys; ``input_add`` adds e to the
    inputs. Raises ``UsageError`` where widths do not fit.
    """

    def __init__(
        self,
        kind: Encoding,
        *,
        width: int,
        heads: int,
        layers: int,
        extent: tuple[int, ...],
        limit: int,
        use: Use = "attn_scalar",
        maps: Maps = "shared",
        code: int = 32,
        code_layers: int = 2,
        base: int = 10,
        mask_padding: bool = True,
        scale: float = 1.0,
        beyond: Beyond = "interpolate",
    ) -> None:
        """``extent``: positions of training along each dimension; ``limit``: all positions along each are below it.

        ``code`` and ``code_layers``: width and depth of the digit encoder. ``scale``: factor of ``attn_scalar``.
        ``beyond``: a learned table is stretched over positions beyond training, or has untrained rows for them.
        """
        super().__init__()
        self.kind, self.heads, self.layers, self.use, self.maps = kind, heads, layers, use, maps
        self.extent, self.limit, self.scale, self.beyond, self.width = extent, limit, scale, beyond, width
        dims = len(extent)
        if kind == "learned":
            if dims not in STRETCH:
                raise UsageError(f"a learned table has 1 to 3 dimensions, not {dims}")
            self.table = nn.Parameter(0.02 * torch.randn(*[limit] * dims, width))
        if kind == "seqpe":
            out = code if use == "attn_scalar" else width
            if code % heads:
                raise UsageError(f"the width of position vectors ({code}) is not a multiple of the heads ({heads})")
            self.encoder = DigitEncoder(
                limit=limit,
                dims=dims,
                width=code,
                layers=code_layers,
                heads=heads,
                out=out,
                base=base,
                mask_padding=mask_padding,
            )
            count = 0 if use == "input_add" or maps == "none" else 1 if maps == "shared" else layers
            self.to_qk = nn.ModuleList(nn.Linear(out, 2 * out) for _ in range(count))
            initialise(self.to_qk)

    def vectors(self, positions: Tensor) -> Tensor:
        """One vector for each position, (..., D) to (..., W): of SeqPE, learned tables and sinusoids.

        Raises ``UsageError`` for encodings without.
        """
        if self.kind == "seqpe":
            found: Tensor = self.encoder(positions)
            return found
        if self.kind == "sinusoidal":
            return sinusoids(self.flat(positions), self.width)
        if self.kind == "learned":
            return self._rows(positions)
        raise UsageError(f"the encoding {self.kind!r} has no vectors of positions")

    def flat(self, positions: Tensor) -> Tensor:
        """(..., D) to row-major indices (...)."""
        powers = self.limit ** torch.arange(positions.shape[-1] - 1, -1, -1, device=positions.device)
        return (positions * powers).sum(-1)

    def forward(self, positions: Tensor, queries: int | None = None) -> Encoded:
        """Positions (G, S, D) of the keys; the last ``queries`` of them (default: all) are those of the inputs.

        G is the batch, or 1 where all rows have the same positions.
        """
        recent = slice(positions.shape[1] - (queries if queries is not None else positions.shape[1]), None)
        if self.kind in ("learned", "sinusoidal"):
            return Encoded(added=self.vectors(positions)[:, recent])
        if self.kind == "rope":
            turn = rotation(self.flat(positions[:, recent]), self.width // self.heads)
            return Encoded(adapt=lambda layer: lambda q, k: (rotated(q, *turn), rotated(k, *turn)))
        if self.kind == "alibi":
            at = self.flat(positions).float()
            distance = (at[:, recent, None] - at[:, None]).abs()
            biases = -alibi_slopes(self.heads, at.device)[:, None, None] * distance[:, None]
            return Encoded(bias=lambda layer: biases)
        if self.kind == "none":
            return Encoded()
        return self._seqpe(self.encoder(positions), recent)

    def _seqpe(self, vectors: Tensor, recent: slice) -> Encoded:
        if self.use == "input_add":
            return Encoded(added=vectors[:, recent])
        made: dict[int, tuple[Tensor, Tensor]] = {}

        def parts(layer: int) -> tuple[Tensor, Tensor]:
            """(G, heads, T, d) and (G, heads, S, d) of a layer."""
            which = layer if self.maps == "per_layer" else 0
            if which not in made:
                q, k = (vectors, vectors) if self.maps == "none" else self.to_qk[which](vectors).chunk(2, -1)
                made[which] = split_heads(q[:, recent], self.heads), split_heads(k, self.heads)
            return made[which]

        if self.use == "attn_scalar":

            def bias(layer: int) -> Tensor:
                q, k = parts(layer)
                return self.scale / math.sqrt(q.shape[-1]) * (q @ k.transpose(-1, -2))

            return Encoded(bias=bias)

        def adapt(layer: int) -> Adapt:
            a, b = parts(layer)
            b = b[:, :, recent]  # keys of the past were changed when they were new
            return lambda q, k: (q * a, k * b) if self.use == "attn_mul" else (q + a, k + b)

        return Encoded(adapt=adapt)

    def _rows(self, positions: Tensor) -> Tensor:
        """Rows of the learned table; beyond training, those of training stretched over all positions in use."""
        reach = [int(positions[..., axis].max()) + 1 for axis in range(len(self.extent))]
        table: Tensor = self.table
        if self.beyond == "interpolate" and any(n > m for n, m in zip(reach, self.extent, strict=True)):
            size = [max(n, m) for n, m in zip(reach, self.extent, strict=True)]
            trained = table[tuple(slice(m) for m in self.extent)].movedim(-1, 0)[None]
            stretched = F.interpolate(trained, size, mode=STRETCH[len(size)], align_corners=False)
            table = stretched[0].movedim(0, -1)
        return table[positions.unbind(-1)]


def sinusoids(positions: Tensor, width: int, theta: float = 10_000.0) -> Tensor:
    """Sines and cosines (..., width) of positions (...), Vaswani et al. 2017, section 3.5, divided by sqrt(width).

    There the token embeddings are multiplied by that root instead. A sine and its cosine are neighbours, so that dot
    products depend on differences alone, also within heads of an even width.
    """
    half = width // 2
    angles = positions[..., None] * theta ** (-torch.arange(half, device=positions.device) / half)
    return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(-2) / math.sqrt(width)


def rotation(positions: Tensor, width: int, theta: float = 10_000.0) -> tuple[Tensor, Tensor]:
    """Cosines and sines (G, 1, T, width) that turn pairs of coordinates (Su et al. 2021, RoPE, equation 34)."""
    half = width // 2
    angles = positions[..., None] * theta ** (-torch.arange(half, device=positions.device) / half)
    angles = torch.cat([angles, angles], dim=-1)[:, None]
    return angles.cos(), angles.sin()


def rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """(B, H, T, D) turned by the angles of its positions."""
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat([-second, first], dim=-1) * sin


def alibi_slopes(heads: int, device: torch.device | str = "cpu") -> Tensor:
    """(heads,) slopes 2^(-8 i / heads), i = 1, ..., heads (Press et al. 2022, ALiBi, section 3).

    >>> alibi_slopes(4).tolist()
    [0.25, 0.0625, 0.015625, 0.00390625]
    """
    return 2.0 ** (-8 * torch.arange(1, heads + 1, device=device) / heads)
