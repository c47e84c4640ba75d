"""What an encoder's classifier reads: embeddings of all rows, and a student that imitates them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from kdbench.losses.features import hint
from kdbench.tracks.llm.data.encoding import Sequences, TextBatch
from kdbench.tracks.llm.networks.models import penultimate
from kdbench.training.projectors import projector

if TYPE_CHECKING:
    from kdbench.tracks.llm.task import LLMTask


@torch.no_grad()
def outputs_of(
    task: LLMTask, model: nn.Module, sequences: Sequences, compute: Callable[[Any, TextBatch], Sequence[Tensor]]
) -> list[Tensor]:
    """Outputs of ``compute(model, batch)`` on all rows in order, each concatenated; the model is in eval mode then."""
    model.eval()
    batches = sequences.batches(task.spec.evaluation.batch_size, "")
    parts = [compute(model, batch.to(task.device)) for batch in batches]
    return [torch.cat(column) for column in zip(*parts, strict=True)]


def teacher_embeddings(task: LLMTask, sequences: Sequences) -> list[Tensor]:
    """Embeddings (N, D) and logits (N, C) of the task's teacher."""
    return outputs_of(task, task.teacher(), sequences, penultimate)


def imitate_embeddings(
    task: LLMTask,
    plain: Callable[[nn.Module, TextBatch], Mapping[str, Tensor]],
    sequences: Sequences,
    loader: Iterable[TextBatch],
    *,
    weight: float,
) -> nn.Module:
    """The task's student, trained by a loss and by the mean squared distance of its embeddings to the teacher's.

    The student's go through a linear projector. ``index`` of the batches of ``loader`` counts in ``sequences``, of
    which the teacher is asked about every row once.
    """
    student = task.student()
    task.budget.spend("teacher_queries", len(sequences))
    target, _ = teacher_embeddings(task, sequences)
    with task.seeded("projector"):
        project = projector("linear", student.config.hidden_size, target.shape[1]).to(task.device)

    def loss(model: nn.Module, batch: TextBatch) -> dict[str, Tensor]:
        mine, _ = penultimate(model, batch)
        return {**plain(model, batch), "hint": weight * hint(project(mine), target[batch.index])}

    task.fit(student, loss, loader=loader, modules=[project])
    return student
