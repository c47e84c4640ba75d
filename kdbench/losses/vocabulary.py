"""Losses of next-token logits that never hold the logits of all positions: some positions at a time.

The logits of N positions over a vocabulary of V are the largest tensors of a training step, and a loss holds several of
their size. Here ``hidden @ weight.T`` is computed for a block of positions, the loss and its gradient in these logits
follow at once, and only the gradients of the hidden states and of the head are kept. Every product is computed once, as
in the plain formula; the loss must be a sum over positions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from kdbench.losses.divergences import Divergence
from kdbench.losses.slopes import Pool, with_slope

BLOCK = 3 << 22
"""Most logits of a block on the CPU."""
STRIP = 1 << 13
"""Words whose gradients are added at a time where they are summed in a wider precision than they are computed in."""

Parts = Mapping[str, Tensor]
"""Named scalars whose sum is the loss."""


@dataclass(frozen=True)
class Head:
    """Logits (N, V) that are not computed yet: hidden states and the linear layer that reads them."""

    hidden: Tensor
    """(N, D)."""
    weight: Tensor
    """(V, D)."""
    bias: Tensor | None = None
    """(V,)."""

    def __len__(self) -> int:
        return self.hidden.shape[0]

    @property
    def vocabulary(self) -> int:
        return self.weight.shape[0]

    def ready(self) -> Head:
        """Everything in the precision of autocast, or else of the hidden states."""
        kind = self.hidden.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else self.hidden.dtype
        bias = None if self.bias is None else self.bias.to(dtype)
        return Head(self.hidden.to(dtype), self.weight.to(dtype), bias)

    @torch.no_grad()
    def logits(self, rows: slice = slice(None), pool: Pool | None = None) -> Tensor:
        """Logits of some positions, without gradient; in a tensor of ``pool`` where one is given."""
        head = self.ready()
        states = head.hidden[rows]
        out = None if pool is None else pool.like(states[:, :1].expand(-1, self.vocabulary))
        with torch.autocast(states.device.type, enabled=False):
            found = torch.mm(states, head.weight.T, out=out)
            return found if head.bias is None else found.add_(head.bias)


def block(vocabulary: int, device: torch.device) -> int:
    """Positions of a block: logits of at most 48 MiB in float32 on the CPU, of 384 MiB elsewhere."""
    if device.type == "cpu":
        return max(1, min(256, BLOCK // vocabulary))  # more rows than this make products no faster
    return max(1, 8 * BLOCK // vocabulary)


def chunked_loss(head: Head, loss: Callable[[Tensor, slice], Parts], *, rows: int | None = None) -> dict[str, Tensor]:
    """The parts of a loss of a student's logits, summed over blocks of ``rows`` positions (default: :func:`block`).

    ``loss(logits, rows)`` gives the contribution of the positions that the slice names, from their logits (n, V), as
    named scalars, the same names for every block. Anything else that it reads is a constant. The sum of the result has
    the gradient of the whole loss in hidden states, weight and bias; of the single parts the first one carries it, for
    all of them. Logits are in the precision of autocast or of the hidden states, and the gradient of the head is summed
    in float32. Can be differentiated once.
    """
    size = block(head.vocabulary, head.hidden.device) if rows is None else rows
    if size < 1:
        raise ValueError(f"rows is at least 1, not {size}")
    sums: dict[str, Tensor] = {}
    total: Tensor = _Chunked.apply(head.hidden, head.weight, head.bias, loss, size, sums)  # type: ignore[no-untyped-call]
    first, *others = sums
    return {first: sums[first] + (total - total.detach())} | {name: sums[name] for name in others}


def chunked_divergence(
    student: Head,
    teacher: Head | Tensor,
    divergence: Divergence,
    weights: Tensor,
    *,
    targets: Tensor | None = None,
    kd_ratio: float = 1.0,
    temperature: float = 1.0,
    rows: int | None = None,
) -> dict[str, Tensor]:
    """``kd``: ``kd_ratio sum w D(teacher, student)``, and ``ce``: ``(1 - kd_ratio) sum w CE`` of ``targets`` (N,).

    ``teacher`` is its head at the same N positions, or its logits (N, V). ``weights`` (N,) are 1 / N for the mean over
    tokens. A term whose weight is 0 is left out; :func:`chunked_loss` says how the parts have gradients. Gives the
    values and gradients of the plain formula up to rounding.
    """

    pool, teacher = Pool(), teacher.ready() if isinstance(teacher, Head) else teacher

    def loss(logits: Tensor, part: slice) -> Parts:
        parts, weight = {}, weights[part]
        pool.restart()
        if kd_ratio > 0:
            if isinstance(teacher, Head):
                said = teacher.logits(part, pool).to(logits.device)
                values = with_slope(divergence, logits, said, pool, temperature=temperature)
            else:  # given logits may be -inf somewhere
                values = divergence(logits, teacher[part], temperature=temperature)
            parts["kd"] = kd_ratio * (weight * values).sum()
        if kd_ratio < 1:
            if targets is None:
                raise ValueError("kd_ratio below 1 needs targets")
            wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
            nll = F.cross_entropy(wide, targets[part], reduction="none")
            parts["ce"] = (1 - kd_ratio) * (weight * nll).sum()
        return parts

    return chunked_loss(student, loss, rows=rows)


class _Chunked(torch.autograd.Function):
    """Loss and gradients in one pass over the blocks; ``backward`` only scales what is there."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        loss: Callable[[Tensor, slice], Parts],
        size: int,
        sums: dict[str, Tensor],
    ) -> Tensor:
        of_hidden, of_weight, of_bias = ctx.needs_input_grad[:3]
        kind = hidden.device.type
        head, pool = Head(hidden, weight, bias).ready(), Pool()
        states, matrix = head.hidden, head.weight
        wide = torch.promote_types(states.dtype, torch.float32)
        d_hidden = torch.empty_like(states) if of_hidden else None
        d_weight = torch.zeros_like(weight, dtype=wide) if of_weight else None
        d_bias = torch.zeros_like(bias, dtype=wide) if of_bias and bias is not None else None
        for start in range(0, max(1, len(states)), size):  # no positions are a block, too
            rows = slice(start, min(start + size, len(states)))
            pool.restart()
            logits = head.logits(rows, pool)
            with torch.enable_grad():
                logits = logits.detach().requires_grad_(of_hidden or of_weight or of_bias)
                parts = loss(logits, rows)
                whole = sum(parts.values(), torch.zeros((), device=logits.device))
            for name, value in parts.items():
                sums[name] = sums[name] + value.detach() if name in sums else value.detach()
            if not logits.requires_grad:
                continue
            (slope,) = torch.autograd.grad(whole, logits)
            del logits, parts, whole
            with torch.autocast(kind, enabled=False):
                if d_hidden is not None:
                    torch.mm(slope, matrix, out=d_hidden[rows])
                if d_weight is not None:
                    _add_product(d_weight, slope.T, states[rows])
                if d_bias is not None:
                    d_bias += slope.sum(0, dtype=wide)
        ctx.gradients = tuple(
            None if gradient is None else gradient.to(of.dtype)
            for gradient, of in ((d_hidden, hidden), (d_weight, weight), (d_bias, bias))
            if of is not None
        )
        return sum(sums.values(), torch.zeros((), device=hidden.device))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, scale: Tensor) -> Any:
        if ctx.gradients is None:
            raise RuntimeError("a chunked loss can be differentiated once: its gradients are scaled in place")
        gradients, ctx.gradients = ctx.gradients, None
        for gradient in gradients:
            if gradient is not None:
                gradient.mul_(scale)
        return (*gradients, *[None] * (6 - len(gradients)))


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """``total += left @ right``, summed in the precision of ``total``."""
    if left.dtype == total.dtype:
        total.addmm_(left, right)
        return
    for part in range(0, len(total), STRIP):  # the whole product would be as large as half of the total
        total[part : part + STRIP] += left[part : part + STRIP] @ right
