"""How sure a network is, and whether it should be."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from kdbench.tracks.dllm.networks.base import canvas_logits

if TYPE_CHECKING:
    from kdbench.tracks.dllm.task import DllmTask


def ece(confidence: Tensor, correct: Tensor, bins: int = 10) -> float:
    """Expected calibration error (Guo et al. 2017): mean over tokens of |accuracy - confidence| of a token's bin.

    ``confidence`` (N,) in [0, 1] and ``correct`` (N,) bool; ``bins`` of equal width. 0 without tokens.
    """
    if not len(confidence):
        return 0.0
    number = (confidence.double() * bins).long().clamp(0, bins - 1)
    sums = torch.zeros(bins, dtype=torch.float64, device=confidence.device)
    gap = sums.index_add(0, number, correct.double() - confidence.double())
    return float(gap.abs().sum() / len(confidence))


@torch.no_grad()
def certainty_curve(task: DllmTask, net: nn.Module, split: str = "val", shares: int = 4) -> list[float]:
    """Mean confidence of masked positions when 0, 1, ... of ``shares`` parts of the text are there.

    The texts are those that the teacher writes one token per step, in its order (:meth:`DllmTask.reference`).
    """
    prompts, written = task.split(split).prompts, task.reference(split)
    length = written.tokens.shape[1]
    order = written.steps.masked_fill(written.steps < 0, length).argsort(dim=1, stable=True).argsort(dim=1)
    was_training = net.training
    net.eval()
    means = []
    for part in range(shares):
        masked = order >= part * length // shares
        canvas = written.tokens.masked_fill(masked, task.mask)
        sums, count = 0.0, 0
        for rows in torch.arange(len(canvas), device=canvas.device).split(task.spec.evaluation.batch_size):
            sure = canvas_logits(net, prompts[rows], canvas[rows]).softmax(dim=-1).amax(dim=-1)
            sums += float(sure[masked[rows]].sum())
            count += int(masked[rows].sum())
        means.append(sums / max(1, count))
    net.train(was_training)
    return means
