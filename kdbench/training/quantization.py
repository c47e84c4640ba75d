"""Weights on a few levels: uniform quantization in buckets, learned levels, and their size after entropy coding.

After Polino, Pascanu and Alistarh, ICLR 2018. A tensor is flattened and cut into buckets, the last one filled up with
its last value; each bucket is scaled to [0, 1] by its minimum and range (section 2.1).
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

FLOAT_BITS = 32


@dataclass(frozen=True)
class Scaled:
    """A tensor in buckets that are scaled to [0, 1]."""

    values: Tensor
    """(n, size): n buckets, filler included."""
    low: Tensor
    """(n, 1): smallest value of each bucket."""
    span: Tensor
    """(n, 1): range of each bucket, 1 where all its values are equal."""
    shape: torch.Size
    """Of the tensor itself."""

    def restore(self, values: Tensor) -> Tensor:
        """Scaled values (n, size) back as a tensor of the original shape, without the filler; differentiable."""
        return (values * self.span + self.low).flatten()[: self.shape.numel()].view(self.shape)

    def unfilled(self, values: Tensor) -> Tensor:
        """(N,): what belongs to the tensor's own N elements, of something of shape (n, size)."""
        return values.flatten()[: self.shape.numel()]


def scale(weights: Tensor, bucket: int | None = None) -> Scaled:
    """Cut into buckets of ``bucket`` elements (None: one bucket) and scale; without gradient."""
    flat = weights.detach().flatten()
    size = len(flat) if bucket is None else bucket
    filler = flat[-1:].expand(-len(flat) % size)
    rows = torch.cat([flat, filler]).view(-1, size)
    low, high = rows.amin(1, keepdim=True), rows.amax(1, keepdim=True)
    span = torch.where(high > low, high - low, torch.ones_like(low))
    return Scaled((rows - low) / span, low, span, weights.shape)


@dataclass(frozen=True)
class Quantized:
    """A tensor whose elements are on a few levels of their bucket."""

    weights: Tensor
    """In the original shape, without gradient."""
    indices: Tensor
    """(N,) int64: the level of each element."""
    buckets: int


@torch.no_grad()
def uniform(
    weights: Tensor, bits: int, bucket: int | None = None, generator: torch.Generator | None = None
) -> Quantized:
    """Round to 2^bits equally spaced levels between the minimum and the maximum of each bucket (equation 2).

    To the nearest level; with a ``generator`` of the CPU to one of the two neighbours at random, so that the mean is
    the unrounded value.
    """
    scaled, last = scale(weights, bucket), 2**bits - 1
    position = scaled.values * last
    if generator is None:
        index = position.round()
    else:
        draw = torch.rand(position.shape, generator=generator).to(position)
        index = (position.floor() + (draw < position - position.floor())).clamp(max=last)
    return Quantized(scaled.restore(index / last), scaled.unfilled(index).long(), len(scaled.values))


class _StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weights: Tensor, quantized: Tensor, limit: float | None) -> Tensor:
        ctx.limit = limit
        if limit is not None:
            ctx.save_for_backward(weights)
        return quantized.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        gradient = gradients[0]
        if ctx.limit is not None:
            (weights,) = ctx.saved_tensors
            gradient = gradient.masked_fill(weights.abs() > ctx.limit, 0)
        return gradient, None, None


def straight_through(weights: Tensor, quantized: Tensor, limit: float | None = None) -> Tensor:
    """The value of ``quantized`` with the gradient of ``weights``; 0 where |weights| exceeds ``limit``."""
    made: Tensor = _StraightThrough.apply(weights, quantized, limit)  # type: ignore[no-untyped-call]
    return made


# --- learned levels ---------------------------------------------------------------------------------------------------


class LearnedLevels(nn.Module):
    """A fixed tensor on levels that are learned (section 4): each scaled element takes the nearest of P points.

    Calling it gives the quantized tensor, differentiable in the points: dL/dp_j is the sum over the elements at j of
    their bucket's range times dL/dw. :meth:`sort` keeps the points in order after a step.
    """

    def __init__(
        self, weights: Tensor, points: int, bucket: int | None, start: Literal["quantiles", "uniform"] = "quantiles"
    ) -> None:
        super().__init__()
        made = scale(weights, bucket)
        self._shape = made.shape
        self.register_buffer("values", made.values)
        self.register_buffer("low", made.low)
        self.register_buffer("span", made.span)
        grid = torch.linspace(0, 1, points, device=weights.device, dtype=made.values.dtype)
        self.points = nn.Parameter(torch.quantile(made.unfilled(made.values), grid) if start == "quantiles" else grid)

    def _scaled(self) -> Scaled:
        return Scaled(self.get_buffer("values"), self.get_buffer("low"), self.get_buffer("span"), self._shape)

    @torch.no_grad()
    def nearest(self) -> Tensor:
        """(n, size) int64: the point that each scaled element takes; the points are in order."""
        middle = (self.points[1:] + self.points[:-1]) / 2
        return torch.bucketize(self.get_buffer("values"), middle)

    def forward(self) -> Tensor:
        return self._scaled().restore(self.points[self.nearest()])

    @torch.no_grad()
    def sort(self) -> None:
        """Put the points in order."""
        self.points.copy_(self.points.sort().values)

    def quantized(self) -> Quantized:
        """The tensor as it is now."""
        scaled = self._scaled()
        return Quantized(self.forward().detach(), scaled.unfilled(self.nearest()), len(scaled.values))


def allocate_points(norms: Sequence[float], points: int) -> list[int]:
    """Points per tensor: half of ``points`` each, and the rest of ``points * len(norms)`` in proportion to the norms.

    ``norms`` are those of the loss gradient by tensor (section 4.1). Fractions go to the largest remainders; where all
    norms are 0 the shares are equal. At least 2 points each.
    """
    least = max(2, points // 2)
    rest = max(0, points * len(norms) - least * len(norms))
    total = sum(norms)
    shares = [rest * (norm / total if total > 0 else 1 / len(norms)) for norm in norms]
    made = [math.floor(share) for share in shares]
    order = sorted(range(len(norms)), key=lambda i: made[i] - shares[i])
    for i in order[: rest - sum(made)]:
        made[i] += 1
    return [least + more for more in made]


# --- networks ---------------------------------------------------------------------------------------------------------


def layer_weights(model: nn.Module, *, ends: bool = True) -> list[str]:
    """Names of the weights of convolutions and linear layers, in the order of the modules.

    Without ``ends`` the first and the last are left out. Biases and normalisations are not among them.
    """
    layers = nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.Linear
    names = [f"{name}.weight" for name, module in model.named_modules() if isinstance(module, layers)]
    return names if ends else names[1:-1]


# --- size -------------------------------------------------------------------------------------------------------------


def huffman_lengths(counts: Sequence[int]) -> list[int]:
    """Length in bits of each symbol's Huffman code; 0 for symbols that do not occur, and for one that is alone."""
    heap = [(count, i, [i]) for i, count in enumerate(counts) if count]
    heapq.heapify(heap)
    lengths = [0] * len(counts)
    tie = len(counts)
    while len(heap) > 1:
        one, _, left = heapq.heappop(heap)
        two, _, right = heapq.heappop(heap)
        for symbol in (*left, *right):
            lengths[symbol] += 1
        heapq.heappush(heap, (one + two, tie, [*left, *right]))
        tie += 1
    return lengths


@dataclass(frozen=True)
class TensorSize:
    """What one quantized tensor takes."""

    weights: int
    levels: int
    """Levels that it may use."""
    used: int
    """Levels that it uses."""
    code_bits: int
    """Of all level indices, Huffman-coded."""
    side_bits: int
    """Of two floats per bucket, and of the learned points."""


def tensor_size(quantized: Quantized, levels: int, *, learned: bool = False) -> TensorSize:
    """Size of a tensor whose indices have a Huffman code of their own (section 2.2 and appendix)."""
    counts = torch.bincount(quantized.indices.cpu(), minlength=levels).tolist()
    code = sum(count * length for count, length in zip(counts, huffman_lengths(counts), strict=True))
    side = FLOAT_BITS * (2 * quantized.buckets + (levels if learned else 0))
    return TensorSize(len(quantized.indices), levels, sum(count > 0 for count in counts), code, side)
