"""Losses of batches whose logits are too large to hold for student and teacher at once: block by block.

A batch is large where its scored positions times the vocabulary are at least :data:`LARGE`. Models have to make logits
by a linear layer alone; a teacher may also have its outputs kept.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from kdbench.losses.divergences import Divergence
from kdbench.losses.tokens import Reduction, reduce_tokens
from kdbench.losses.vocabulary import Head, chunked_divergence, chunked_loss
from kdbench.tracks.llm.data.encoding import TextBatch
from kdbench.tracks.llm.networks.models import body_and_head, targets_of, token_nll
from kdbench.tracks.llm.outputs import bucketed

if TYPE_CHECKING:
    from kdbench.tracks.llm.task import LLMTask

LARGE = 1 << 25
"""Logits, 128 MiB in float32."""


def linear_head(model: nn.Module) -> tuple[nn.Module, nn.Linear] | None:
    """The transformer of a model and the linear layer that makes its logits; None where they are made otherwise."""
    parts = None if hasattr(model, "scored_logits") else body_and_head(model)
    return parts if parts is not None and type(parts[1]) is nn.Linear else None


def scored_head(model: nn.Module, batch: TextBatch) -> Head:
    """Hidden states of the scored positions, with the head that reads them; one forward, on the batch's device."""
    body, head = linear_head(model)
    hidden = body(input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False).last_hidden_state
    return Head(hidden[:, :-1][batch.scored], head.weight, head.bias)


@dataclass
class LargeBatch:
    """What a loss over a large vocabulary needs of one batch, without its logits."""

    student: Head
    teacher: Head | tuple[Tensor, Tensor] | None
    """Its head, or log-probabilities (N, k+1) and ids (N, k) of kept events, or None where no teacher is asked."""
    targets: Tensor
    """(N,) token ids."""
    sequence: Tensor
    """(N,) row of each position."""

    def weights(self, reduction: Reduction) -> Tensor:
        """(N,) what each position counts in a reduction: its slope, as reductions are linear."""
        values = torch.zeros(len(self.student), device=self.targets.device)
        found: Tensor = torch.func.grad(lambda v: reduce_tokens(v, self.sequence, reduction))(values)
        return found

    def hard_loss(self) -> Tensor:
        """Mean cross-entropy of the targets."""
        weights = self.weights("tok_mean")

        def loss(logits: Tensor, rows: slice) -> dict[str, Tensor]:
            return {"loss": (weights[rows] * token_nll(logits, self.targets[rows])).sum()}

        return chunked_loss(self.student, loss)["loss"]

    def loss(
        self, divergence: Divergence, *, kd_ratio: float, temperature: float, reduction: Reduction
    ) -> dict[str, Tensor]:
        """As :func:`kdbench.training.distill.distillation_loss`."""
        weights, options = self.weights(reduction), {"kd_ratio": kd_ratio, "temperature": temperature}
        if isinstance(self.teacher, Head):
            teacher, targets = self.teacher, self.targets
            return chunked_divergence(self.student, teacher, divergence, weights, targets=targets, **options)
        assert self.teacher is not None
        values, ids = self.teacher

        def loss(logits: Tensor, rows: slice) -> dict[str, Tensor]:
            events, nll = bucketed(logits.float(), ids[rows], self.targets[rows])
            kd = divergence(events, values[rows], temperature=temperature)
            parts = {"kd": kd_ratio * (weights[rows] * kd).sum(), "ce": (1 - kd_ratio) * (weights[rows] * nll).sum()}
            return {name: part for name, part in parts.items() if (kd_ratio > 0 if name == "kd" else kd_ratio < 1)}

        return chunked_loss(self.student, loss)


def large_batch(task: LLMTask, model: nn.Module, batch: TextBatch, *, teacher: bool = True) -> LargeBatch | None:
    """Forwards of a large batch, with the teacher's where asked; None where the batch is small or a model unsuited."""
    if task.classifies or (parts := linear_head(model)) is None:
        return None
    vocabulary = parts[1].weight.shape[0]
    # most batches are small whatever they score: only the others are counted
    if batch.labels.numel() * vocabulary < LARGE or int(batch.scored.sum()) * vocabulary < LARGE:
        return None
    live = teacher and task.spec.outputs is None
    if live and linear_head(task.teacher()) is None:
        return None
    sequence = batch.scored.nonzero()[:, 0]
    student, said = scored_head(model, batch), None
    if live:
        with torch.no_grad():
            shared = task.teacher()
            said = scored_head(shared, batch.to(next(shared.parameters()).device))
        if task.phase == "train":
            task.budget.spend("teacher_queries", len(batch))
    elif teacher:
        said = task.kept_outputs(batch)
    return LargeBatch(student, said, targets_of(batch), sequence)
