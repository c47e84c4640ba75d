"""What models say of given responses: logits, log-probabilities of the tokens, and how often problems are solved."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from kdbench.losses.divergences import log_softmax
from kdbench.tracks.llm.data.encoding import TextBatch
from kdbench.tracks.llm.networks.models import scored_logits
from kdbench.tracks.reasoning_rl.data.problems import Problem

if TYPE_CHECKING:
    from kdbench.tracks.reasoning_rl.task import ReasoningTask


def token_logits(model: nn.Module, batch: TextBatch) -> Tensor:
    """(N, V) float32 logits that predict each response token of a batch; with gradient where the model has one."""
    return scored_logits(model, batch).float()


def chosen(logits: Tensor, targets: Tensor, temperature: float = 1.0) -> Tensor:
    """(N,) log-probabilities of ``targets`` (N,) under logits (N, V) at a temperature."""
    return log_softmax(logits, temperature).gather(-1, targets[:, None])[:, 0]


@torch.no_grad()
def frozen_logits(task: ReasoningTask, model: nn.Module, batch: TextBatch) -> Tensor:
    """(N, V) float32 logits of another network in evaluation mode, without gradient, on the task's device.

    In training spends ``teacher_tokens`` (the response tokens) and ``teacher_queries`` (the rows).
    """
    was_training = model.training
    model.eval()
    try:
        with task.one_query(batch):
            logits = scored_logits(model, batch.to(next(model.parameters()).device)).float()
    finally:
        model.train(was_training)
    return logits.to(task.device)


def mean_logp(logp: Tensor, sequence: Tensor, rows: int) -> Tensor:
    """(R,) mean log-probability of the tokens of each of ``rows`` responses; 0 for one without tokens."""
    sums = torch.zeros(rows, dtype=logp.dtype, device=logp.device).index_add(0, sequence, logp)
    counts = torch.bincount(sequence, minlength=rows).clamp_min(1)
    return sums / counts


def pass_rate(
    task: ReasoningTask, model: nn.Module, problems: Sequence[Problem], k: int, generator: torch.Generator
) -> np.ndarray:
    """(P,) share of ``k`` samples at temperature 1 that solve each problem; metered as any rollout."""
    correct = task.accuracy(model, problems, samples=k, temperature=1.0, generator=generator, metered=True)
    share: np.ndarray = correct.mean(axis=1)
    return share
