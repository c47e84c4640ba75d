"""Distillation of next-token (or class) distributions by a divergence: what most language-model methods share."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor, nn

from kdbench.losses.divergences import Divergence
from kdbench.losses.tokens import Reduction, reduce_tokens, tok_mean
from kdbench.training.state import Stateful


def hard_loss(task: Any) -> Callable[[nn.Module, Any], Tensor]:
    """Cross-entropy of the labels, mean over the scored tokens (classification: rows), as a loss of ``fit``."""

    def loss(model: nn.Module, batch: Any) -> Tensor:
        large = task.large(model, batch, teacher=False)
        if large is not None:
            value: Tensor = large.hard_loss()
            return value
        return tok_mean(task.nll(model, batch))

    return loss


def distillation_loss(
    task: Any,
    divergence: Divergence,
    *,
    kd_ratio: float = 1.0,
    temperature: float = 1.0,
    reduction: Reduction = "tok_mean",
) -> Callable[[nn.Module, Any], dict[str, Tensor]]:
    """``(1 - kd_ratio) CE + kd_ratio D(teacher, student)`` over the scored tokens of a batch, as a loss of ``fit``.

    D includes the factor ``temperature ** 2``. A term whose weight is 0 is left out. Where logits are large they are
    made and used block by block (:mod:`kdbench.losses.vocabulary`).
    """

    def loss(model: nn.Module, batch: Any) -> dict[str, Tensor]:
        large = task.large(model, batch)
        if large is not None:
            blocks: dict[str, Tensor] = large.loss(
                divergence, kd_ratio=kd_ratio, temperature=temperature, reduction=reduction
            )
            return blocks
        tokens = task.tokens(model, batch)
        parts = {}
        if kd_ratio > 0:
            values = divergence(tokens.student, tokens.teacher, temperature=temperature)
            parts["kd"] = kd_ratio * reduce_tokens(values, tokens.sequence, reduction)
        if kd_ratio < 1:
            parts["ce"] = (1 - kd_ratio) * reduce_tokens(tokens.nll, tokens.sequence, reduction)
        return parts

    return loss


def train_with_divergence(
    task: Any,
    divergence: Divergence,
    *,
    kd_ratio: float = 1.0,
    temperature: float = 1.0,
    reduction: Reduction = "tok_mean",
    student: nn.Module | None = None,
    loader: Iterable[Any] | None = None,
    steps: int | None = None,
    on_step: Callable[[int], None] | None = None,
    state: Iterable[Stateful] = (),
) -> nn.Module:
    """Train the task's student (or ``student``) by :func:`distillation_loss` and return it."""
    student = task.student() if student is None else student
    loss = distillation_loss(task, divergence, kd_ratio=kd_ratio, temperature=temperature, reduction=reduction)
    task.fit(student, loss, loader=loader, steps=steps, on_step=on_step, state=state)
    return student
