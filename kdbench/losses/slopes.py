"""Divergences with their slopes in the student's logits in closed form: fewer tensors of the size of the logits.

With q and p the student's and the teacher's distribution at one position and D the divergence, the slope in the logits
at temperature 1 is ``q (g - sum q g)`` with ``g = dD/dq``. What is here gives the values and, up to rounding, the
gradients of :mod:`kdbench.losses.divergences`, for finite logits: nothing is left out of a sum.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from kdbench.losses import divergences
from kdbench.losses.divergences import Divergence, same_vocabulary


class Pool:
    """Tensors of the size of a block of logits that one block after the other uses; memory is not asked for again."""

    def __init__(self) -> None:
        self.kept: list[Tensor] = []
        self.free: list[Tensor] = []

    def restart(self) -> None:
        """Everything may be overwritten."""
        self.free = list(self.kept)

    def like(self, tensor: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        """A tensor of that shape and device, in its precision or another, with anything in it."""
        dtype, size = tensor.dtype if dtype is None else dtype, tensor.numel()
        for i, flat in enumerate(self.free):
            if flat.dtype == dtype and flat.numel() >= size:
                return self.free.pop(i)[:size].view(tensor.shape)
        self.kept.append(tensor.new_empty(size, dtype=dtype))
        return self.kept[-1].view(tensor.shape)

    def give(self, tensor: Tensor) -> None:
        """Where the tensor is of the pool, it may be overwritten."""
        self.free += [flat for flat in self.kept if flat.data_ptr() == tensor.data_ptr()]


Slope = Callable[..., tuple[Tensor, Tensor]]
"""``(log_q, log_p, pool, **options)``, both (n, V) and overwritten, to values (n,) and slopes (n, V)."""


def _dot(a: Tensor, b: Tensor) -> Tensor:
    value: Tensor = torch.linalg.vecdot(a, b)
    return value


def _exp(a: Tensor, pool: Pool) -> Tensor:
    return torch.exp(a, out=pool.like(a))


def _mixture(log_a: Tensor, log_b: Tensor, weight: float, pool: Pool) -> tuple[Tensor, Tensor]:
    """``log(weight a + (1 - weight) b)``, and a tensor that is free again; 0 < ``weight`` < 1."""
    left = torch.add(log_a, math.log(weight), out=pool.like(log_a))
    right = torch.add(log_b, math.log1p(-weight), out=pool.like(log_b))
    return torch.logaddexp(left, right, out=left), right


def _ce_soft(log_q: Tensor, log_p: Tensor, pool: Pool) -> tuple[Tensor, Tensor]:
    p = log_p.exp_()
    value = -_dot(p, log_q)
    return value, log_q.exp_().sub_(p)


def _fkl(log_q: Tensor, log_p: Tensor, pool: Pool) -> tuple[Tensor, Tensor]:
    p = _exp(log_p, pool)
    value = _dot(p, log_p.sub_(log_q))
    return value, log_q.exp_().sub_(p)


def _rkl(log_q: Tensor, log_p: Tensor, pool: Pool) -> tuple[Tensor, Tensor]:
    gap = torch.sub(log_q, log_p, out=log_p)
    q = log_q.exp_()
    value = _dot(q, gap)
    return value, gap.sub_(value[:, None]).mul_(q)


def _sfkl(log_q: Tensor, log_p: Tensor, pool: Pool, lam: float = 0.1) -> tuple[Tensor, Tensor]:
    if lam == 0:
        return _fkl(log_q, log_p, pool)
    log_m, free = _mixture(log_p, log_q, lam, pool)
    p = torch.exp(log_p, out=free)
    value = _dot(p, log_p.sub_(log_m))
    share = p.mul_(torch.sub(log_q, log_m, out=log_m).exp_())  # p q / m
    slope = log_q.exp_().mul_(share.sum(-1, keepdim=True)).sub_(share)
    return value, slope.mul_(1 - lam)


def _srkl(log_q: Tensor, log_p: Tensor, pool: Pool, lam: float = 0.1) -> tuple[Tensor, Tensor]:
    if lam == 0:
        return _rkl(log_q, log_p, pool)
    log_m, free = _mixture(log_q, log_p, lam, pool)
    gap = torch.sub(log_q, log_m, out=log_m)
    q = log_q.exp_()
    value = _dot(q, gap)
    share = torch.exp(gap, out=free).mul_(lam)
    g = gap.sub_(share)  # dD/dq, but for 1, which the mean takes off again
    return value, g.sub_(_dot(q, g)[:, None]).mul_(q)


def _jsd(log_q: Tensor, log_p: Tensor, pool: Pool, beta: float = 0.5) -> tuple[Tensor, Tensor]:
    if beta in (0, 1):
        return (_fkl if beta == 0 else _rkl)(log_q, log_p, pool)
    log_m, free = _mixture(log_p, log_q, beta, pool)
    p = torch.exp(log_p, out=free)
    value = beta * _dot(p, log_p.sub_(log_m))
    gap = torch.sub(log_q, log_m, out=log_m)
    q = log_q.exp_()
    of_q = _dot(q, gap)
    return value + (1 - beta) * of_q, gap.sub_(of_q[:, None]).mul_(q).mul_(1 - beta)


SLOPES: dict[Any, Slope] = {
    divergences.ce_soft: _ce_soft,
    divergences.fkl: _fkl,
    divergences.rkl: _rkl,
    divergences.sfkl: _sfkl,
    divergences.srkl: _srkl,
    divergences.jsd: _jsd,
}


def known(divergence: Divergence) -> Slope | None:
    """The closed form of a divergence with its options bound, or None where there is none."""
    if isinstance(divergence, partial):
        found = SLOPES.get(divergence.func)
        usual = found is not None and not divergence.args and set(divergence.keywords) <= {"lam", "beta"}
        return partial(found, **divergence.keywords) if found is not None and usual else None
    return SLOPES.get(divergence)


def _log_softmax(logits: Tensor, temperature: float, pool: Pool) -> Tensor:
    """In float32 or wider, in a tensor of the pool."""
    wide = torch.promote_types(logits.dtype, torch.float32)
    found, tempered = pool.like(logits, wide), logits
    if temperature != 1:
        tempered = torch.div(logits, temperature, out=pool.like(logits, wide))
    found = torch.log_softmax(tempered, -1, dtype=wide, out=found)
    if temperature != 1:
        pool.give(tempered)
    return found


class _Known(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, student: Tensor, teacher: Tensor, slope: Slope, temperature: float, pool: Pool) -> Tensor:
        mine, theirs = same_vocabulary(student, teacher)
        log_p = _log_softmax(theirs, temperature, pool)
        pool.give(teacher)
        log_q = _log_softmax(mine, temperature, pool)
        value, found = slope(log_q, log_p, pool)
        ctx.found, ctx.temperature, ctx.like = found, temperature, student
        return value * temperature**2

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, scale: Tensor) -> Any:
        found = ctx.found.mul_((scale * ctx.temperature)[:, None]).to(ctx.like.dtype)
        padding = ctx.like.shape[-1] - found.shape[-1]
        return F.pad(found, (0, padding)) if padding else found, None, None, None, None


def with_slope(
    divergence: Divergence, student: Tensor, teacher: Tensor, pool: Pool, *, temperature: float = 1.0
) -> Tensor:
    """``divergence(student, teacher, temperature=temperature)`` of finite logits (n, V) to (n,), in less memory.

    Can be differentiated once, in the student, and before ``pool`` is restarted. Divergences without a closed form are
    computed as they are.
    """
    slope = known(divergence)
    if slope is None:
        return divergence(student, teacher, temperature=temperature)
    value: Tensor = _Known.apply(student, teacher.detach(), slope, temperature, pool)  # type: ignore[no-untyped-call]
    return value
