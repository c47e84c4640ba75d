"""Official metrics of each kind of task, on the test data."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
from torch import nn

from kdbench.errors import JobError
from kdbench.task import Scores
from kdbench.tracks.llm.data.encoding import Sequences
from kdbench.tracks.llm.evaluate import (
    Forced,
    expected_calibration_error,
    forced,
)

if TYPE_CHECKING:
    from kdbench.tracks.llm.task import LLMTask


def score(task: LLMTask, model: nn.Module) -> Scores:
    """The official metrics and the values of each example; language models also go through the harness."""
    scores = task.kind.measure(task, model)
    if task.spec.evaluation.harness and not task.classifies:
        scores.metrics.update(task.harness(model))
    return Scores(official(task, scores.metrics), scores.examples)


def official(task: LLMTask, values: dict[str, float]) -> dict[str, float]:
    """The metrics that the task names, out of all that were measured. Raises ``JobError`` where one is missing."""
    wanted = [metric.name for metric in task.spec.all_metrics()]
    missing = [name for name in wanted if name not in values]
    if missing:
        raise JobError(
            f"task {task.spec.name} names metrics that its test data do not give: {', '.join(missing)} "
            f"(measured: {', '.join(sorted(values))})"
        )
    return {name: values[name] for name in wanted}


def teacher_forced(task: LLMTask, model: nn.Module, split: str) -> tuple[Forced, Sequences]:
    """Model on the references of a split, under its own tokenizer."""
    sequences = task.kind.same_tokens(task, task.split(split), task.tokenizer_of(model))
    return forced(model, sequences.batches(task.spec.evaluation.batch_size, split), task.device), sequences


def divergences(task: LLMTask, model: nn.Module, split: str) -> dict[str, float]:
    """Mean KL of each direction between teacher and model on the references of a split, nats per scored token.

    Raises ``JobError`` for a model with a tokenizer of its own: the two then do not speak of the same events.
    """
    if task.tokenizer_of(model) is not task.tokenizer:
        raise JobError("divergences need a model with the teacher's tokenizer")
    batches = task.split(split).sequences.batches(task.spec.evaluation.batch_size, split)
    result = forced(model, batches, task.device, task.scored_teacher)
    return {"kl_teacher_student": result.forward_kl, "kl_student_teacher": result.reverse_kl}


def token_metrics(result: Forced, reference_tokens: int) -> dict[str, float]:
    """Metrics of given tokens. Perplexity counts the tokens of the task's tokenizer, whatever the model's own is."""
    total = float(result.nll.sum())
    return {
        "loss": total / reference_tokens,
        "perplexity": math.exp(min(total / reference_tokens, 700.0)),
        "token_accuracy": float(result.correct.mean()),
        "ece": expected_calibration_error(result.confidence, result.correct),
    }


def scored_tokens(sequences: Sequences) -> np.ndarray:
    """(N,) scored tokens of each row."""
    counts: np.ndarray = (sequences.lengths - sequences.starts).numpy()
    return counts
