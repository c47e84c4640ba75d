"""What parallelism costs: accuracy by tokens per step, the best number of each sample, orders of writing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from scipy.stats import kendalltau
from torch import Tensor, nn

from kdbench.tracks.dllm.blocks.joints import Joint
from kdbench.tracks.dllm.data import vocabulary
from kdbench.tracks.dllm.decoders.policy import PolicyDecoder
from kdbench.tracks.dllm.decoding import Written
from kdbench.tracks.dllm.policies.basic import TopK
from kdbench.tracks.dllm.policies.scores import Order

if TYPE_CHECKING:
    from kdbench.tracks.dllm.task import DllmTask


@dataclass
class Grid:
    """Texts of one network at several numbers of tokens per step."""

    counts: list[int]
    written: list[Written]
    correct: Tensor
    """(K, N) bool."""
    tpf: Tensor
    """(K, N) float64: tokens up to and with the first end, per forward."""

    def points(self, rows: Tensor) -> list[tuple[float, float]]:
        """(TPF, accuracy) of the problems ``rows`` (N,) bool at each number."""
        return [
            (float(speed[rows].mean()), float(right[rows].double().mean()))
            for speed, right in zip(self.tpf, self.correct, strict=True)
        ]

    def drop(self, rows: Tensor) -> float:
        """Accuracy at the smallest number less that at the largest, of problems ``rows`` (N,) bool."""
        right = self.correct[:, rows].double().mean(dim=1)
        return float(right[0] - right[-1])

    def best(self, share: float = 0.9) -> float:
        """Largest TPF of a number whose accuracy is at least ``share`` of that of the smallest number."""
        everything = torch.ones(self.correct.shape[1], dtype=torch.bool, device=self.correct.device)
        points = self.points(everything)
        return max(speed for speed, right in points if right >= share * points[0][1])

    def oracle(self) -> tuple[float, float]:
        """(TPF, accuracy) where each sample has the largest number at which it is right, or the smallest."""
        number = torch.arange(len(self.counts), device=self.correct.device)[:, None]
        chosen = torch.where(self.correct, number, 0).amax(dim=0, keepdim=True)
        speed = self.tpf.gather(0, chosen).mean()
        return float(speed), float(self.correct.any(dim=0).double().mean())


def grid(task: DllmTask, net: nn.Module, split: str, counts: Sequence[int], order: Order) -> Grid:
    """Decode a split at each number of tokens per step."""
    prompts = task.split(split).prompts
    written = [task.decode(PolicyDecoder(net, TopK(count, order)), prompts) for count in counts]
    correct = torch.stack([task.correct(split, each.tokens) for each in written])
    tpf = torch.stack([each.lengths(task.eos).double() / each.forwards for each in written])
    return Grid(list(counts), written, correct, tpf)


def total_correlation(task: DllmTask, split: str, rows: Tensor) -> float:
    """Mean over problems ``rows`` (N,) bool of the total correlation of their responses, in nats, by enumeration."""
    kind, known, values = task.kind, {}, []
    for row in rows.nonzero().flatten().tolist():
        problem = task.split(split).problems[row]
        # lists of the same operation and length have the same value, whatever their items are
        key = (problem.level, len(problem.prompt)) if task.spec.data.kind == "lists" else problem.prompt
        if key not in known:
            texts = [vocabulary.encode(text, task.length) for text in kind.outcomes(problem)]
            known[key] = Joint.of(texts).total_correlation()
        values.append(known[key])
    return sum(values) / max(1, len(values))


def left_to_right(written: Written, eos: int) -> float:
    """Mean over texts of Kendall's tau between the positions of a text and the order in which they were written.

    1: from left to right; texts of fewer than two tokens, or all at once, count as 0.
    """
    values = []
    for steps, length in zip(written.steps.cpu().tolist(), written.lengths(eos).tolist(), strict=True):
        shown = [step for step in steps[:length] if step >= 0]
        several = len(set(shown)) > 1
        values.append(float(kendalltau(range(len(shown)), shown).statistic) if several else 0.0)
    return sum(values) / len(values)
