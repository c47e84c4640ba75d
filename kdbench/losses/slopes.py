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

from kdbench.losses import divergences
from kdbench.losses.divergences import Divergence, log_mixture, log_softmax, same_vocabulary



class Pool:
    """Tensors of the size of a block of logits that one block after the other uses; memory is not asked for again."""

    def __init__(self) -> None:
        self.kept: list[Tensor] = []
        self.used = 0

    def restart(self) -> None:
        """Everything may be overwritten."""
        self.used = 0

    def like(self, tensor: Tensor) -> Tensor:
        """A tensor of that shape, type and device, with anything in it."""
        if self.used == len(self.kept):
            self.kept.append(tensor.new_empty(tensor.numel()))
        if self.kept[self.used].numel() < tensor.numel() or self.kept[self.used].dtype != tensor.dtype:
            self.kept[self.used] = tensor.new_empty(tensor.numel())
        found = self.kept[self.used][: tensor.numel()].view(tensor.shape)
        self.used += 1
        return found


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
    if temperature != 1:
        return log_softmax(logits, temperature)
    found = pool.like(torch.empty(0, dtype=wide, device=logits.device).expand(0, 0).new_empty(0)) if False else None
    return log_softmax(logits) if found is None else found


class _Known(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, student: Tensor, teacher: Callable[[], Tensor], slope: Slope, temperature: float) -> Tensor:
        log_p = log_softmax(teacher(), temperature)  # the teacher's logits are gone before the student's are doubled
        cut = min(student.shape[-1], log_p.shape[-1])
        if log_p.shape[-1] > cut:  # padding of the vocabulary
            log_p = log_softmax(log_p[..., :cut])
        value, found = slope(log_softmax(student[..., :cut], temperature), log_p)
        ctx.found, ctx.temperature, ctx.like = found, temperature, student
        return value * temperature**2

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, scale: Tensor) -> Any:
        found = ctx.found.mul_((scale * ctx.temperature)[:, None]).to(ctx.like.dtype)
        padding = ctx.like.shape[-1] - found.shape[-1]
        return torch.nn.functional.pad(found, (0, padding)) if padding else found, None, None, None


def with_slope(
    divergence: Divergence, student: Tensor, teacher: Callable[[], Tensor], temperature: float = 1.0
) -> Tensor:
    """``divergence(student, teacher(), temperature=temperature)`` of finite logits (n, V) to (n,), in less memory.

    Can be differentiated once, in the student. Divergences without a closed form are computed as they are.
    """
    slope = known(divergence)
    if slope is None:
        return divergence(student, teacher(), temperature=temperature)
    value: Tensor = _Known.apply(student, teacher, slope, temperature)  # type: ignore[no-untyped-call]
    return value
