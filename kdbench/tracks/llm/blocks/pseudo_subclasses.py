"""Subclasses that nobody labelled: found in a teacher's embeddings or learned by it, and how two models use them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Literal

import numpy as np
from torch import Tensor

from kdbench.losses.subclasses import class_logits, own_subclass, subclass_contrast
from kdbench.losses.tokens import tok_mean
from kdbench.tracks.llm.blocks.embeddings import outputs_of
from kdbench.tracks.llm.blocks.subclasses import SubclassBert, subclass_logits, with_subclasses
from kdbench.tracks.llm.data.encoding import Sequences, TextBatch
from kdbench.tracks.llm.networks.models import token_nll
from kdbench.training.selection import per_class
from kdbench.training.subclasses import (
    Clusters,
    Directions,
    fit_clusters,
    fit_directions,
    mean_nmi,
    null_space,
    principal_axes,
    random_axes,
)

if TYPE_CHECKING:
    from kdbench.tracks.llm.task import LLMTask


def all_subclass_logits(task: LLMTask, model: SubclassBert, sequences: Sequences) -> Tensor:
    """(N, C * S) float32 logits of the subclasses of all rows, in order."""
    return outputs_of(task, model, sequences, lambda network, batch: [subclass_logits(network, batch)])[0]


def share_of_classes(task: LLMTask, share: float) -> tuple[Sequences, Callable[[], Iterable[TextBatch]]]:
    """``share`` in (0, 1] of the training rows of each class; what makes a loader whose ``index`` counts in them."""
    sequences = task.split("train").sequences
    if share == 1:
        return sequences, task.train_loader
    rows = per_class(sequences.labels, share, task.generator("share"))
    return sequences.rows(rows), partial(task.train_loader, rows=rows)


def find_subclasses(
    task: LLMTask,
    kind: Literal["pca", "random", "kmeans"],
    embeddings: Tensor,
    labels: Tensor,
    directions: int,
    *,
    rotate: bool = True,
) -> Directions | Clusters:
    """2 * ``directions`` pseudo-subclasses of each class in the teacher's training embeddings (N, D), labels (N,).

    ``pca``: signed principal axes in the null space of its classifier, with ``rotate`` turned at random among
    themselves; ``random`` directions of the null space; ``kmeans`` clusters in it.
    """
    weight = task.teacher().classifier.weight.detach()
    if kind == "kmeans":
        seed = int(task.rng("kmeans").integers(2**31))
        return fit_clusters(embeddings, labels, weight, 2 * directions, seed)
    if kind == "random":
        axes = random_axes(null_space(weight.double().cpu().numpy()), task.rng("axes"))
        return fit_directions(embeddings, labels, weight, directions, axes=axes)
    turn = task.rng("rotation") if rotate else None
    return fit_directions(embeddings, labels, weight, directions, axes=principal_axes, rotate=turn)


def split_teacher(
    task: LLMTask,
    subclasses: int,
    loader: Iterable[TextBatch],
    *,
    steps: int,
    lr: float,
    contrast: float,
    contrast_temperature: float,
) -> SubclassBert:
    """Subclass distillation's teacher (Müller et al. 2020): a copy of the task's, tuned to have and use subclasses.

    Its loss is the cross-entropy of the classes and ``contrast`` times
    :func:`~kdbench.losses.subclasses.subclass_contrast`. Spends ``aux_steps``.
    """
    with task.seeded("teacher-head"):
        teacher = with_subclasses(task.teacher(trainable=True), subclasses)

    def loss(model: SubclassBert, batch: TextBatch) -> dict[str, Tensor]:
        logits = subclass_logits(model, batch)
        return {
            "ce": tok_mean(token_nll(class_logits(logits, subclasses), batch.labels)),
            "contrast": contrast * subclass_contrast(logits, contrast_temperature),
        }

    task.fit(teacher, loss, loader=loader, steps=steps, spend="aux_steps", tag="teacher", lr=lr)
    return teacher


def compare_subclasses(
    teacher: Tensor, student: Tensor, labels: Tensor, classes: Sequence[str], topics: Sequence[str]
) -> tuple[dict[str, float], dict[str, dict[str, list[int]]]]:
    """What scores (N, C, S) of teacher and student say of the subclass within the true class (N,) of each row.

    ``subclass_agreement``, the share of rows on which they agree, and where the hidden ``topics`` (N) differ their
    normalised mutual information with each side's subclasses, ``topic_nmi_teacher`` and ``topic_nmi_student``. The
    table has the number of rows of each subclass, by side and class.
    """
    owned = {
        "teacher": own_subclass(teacher.cpu(), labels).numpy(),
        "student": own_subclass(student.cpu(), labels).numpy(),
    }
    values, table = {"subclass_agreement": float((owned["teacher"] == owned["student"]).mean())}, {}
    for who, assignment in owned.items():
        table[who] = {
            name: np.bincount(assignment[labels.numpy() == c], minlength=teacher.shape[-1]).tolist()
            for c, name in enumerate(classes)
        }
        if len(set(topics)) > 1:
            values[f"topic_nmi_{who}"] = mean_nmi(assignment, np.array(topics), labels.numpy())
    return values, table
