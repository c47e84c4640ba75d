"""Replays of extremely greedy decoding, and what a filter of predictions learns from them and is judged by."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from kdbench.tracks.dllm.batches import Prompts
from kdbench.tracks.dllm.blocks.oracle import Rows, oracle_decode
from kdbench.tracks.dllm.decoding import Written, joined

if TYPE_CHECKING:
    from kdbench.tracks.dllm.task import DllmTask


class Seen(Rows):
    """Rows of many prompts, which can be counted and chosen from."""

    def __len__(self) -> int:
        return len(self.confidence)

    def __getitem__(self, which: Tensor) -> Seen:
        return Seen(self.confidence[which], self.correct[which], self.masked[which], self.prompt[which])


def replay(task: DllmTask, net: nn.Module, prompts: Prompts, text: Tensor) -> tuple[Written, Seen]:
    """Write ``text`` (N, L) again, committing exactly what ``net`` predicts right, and all that was seen on the way.

    In the task's blocks, some prompts at a time; ``prompt`` of the rows counts over all of them. In evaluation networks
    of the track compute in float64 where the task says so.
    """
    written: list[Written] = []
    seen: list[list[Tensor]] = []
    usual = task.spec.decoding
    double = task.spec.evaluation.double and task.phase == "evaluate"
    for part in torch.arange(len(prompts), device=text.device).split(task.spec.evaluation.batch_size):
        decoded, rows = oracle_decode(
            net,
            prompts[part],
            text[part],
            length=task.length,
            block=usual.block,
            stop=usual.stop,
            double=double,
            cached=usual.cached,
            log=True,
        )
        assert rows is not None
        written.append(decoded)
        seen.append([rows.confidence, rows.correct, rows.masked, rows.prompt + part[0]])
    return joined(written), Seen(*(torch.cat(column) for column in zip(*seen, strict=True)))


def parts(rows: Seen, prompts: int, generator: torch.Generator, share: float = 0.1) -> tuple[Seen, Seen, Seen]:
    """Rows to train on, to stop by and to judge by, split by prompt.

    The last two have a ``share`` of all ``prompts`` each, at least one. Rows of one prompt are much alike: none of them
    is on two sides. Raises ``ValueError`` for less than three prompts.
    """
    if prompts < 3:
        raise ValueError(f"{prompts} prompts cannot be split in three")
    order = torch.randperm(prompts, generator=generator).to(rows.prompt.device)
    size = max(1, round(share * prompts))
    groups = order[2 * size :], order[:size], order[size : 2 * size]
    train, val, test = (rows[torch.isin(rows.prompt, group)] for group in groups)
    return train, val, test


def verdicts(accepted: Tensor, rows: Rows) -> tuple[float, float]:
    """Two shares: what is wrong of ``accepted`` (R, block) bool, and what is accepted of what is right; where masked.

    The first is 0 where nothing is accepted, the second 0 where nothing is right.
    """
    taken = accepted & rows.masked
    right = rows.correct & rows.masked
    wrong = (taken & ~right).sum() / taken.sum().clamp_min(1)
    found = (taken & right).sum() / right.sum().clamp_min(1)
    return float(wrong), float(found)
