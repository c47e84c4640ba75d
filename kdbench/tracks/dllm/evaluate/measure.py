"""What is measured of every decoder."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from kdbench.task import Scores
from kdbench.tracks.dllm.blocks.certainty import ece
from kdbench.tracks.dllm.decoders.base import Decoder
from kdbench.tracks.dllm.decoding import Written
from kdbench.tracks.dllm.evaluate.aup import aup

if TYPE_CHECKING:
    from kdbench.tracks.dllm.task import DllmTask

BUDGETS = {"full": 1, "half": 2, "quarter": 4, "eighth": 8}
"""``accuracy_<name>``: forwards are limited to the length of the canvas over this number (a block has at least one)."""


def parallelism(written: Written, eos: int) -> float:
    """Tokens up to and with the first end, per forward (TPF): ends that fill a canvas count for nothing."""
    return float(written.lengths(eos).sum()) / float(written.forwards.sum())


def curve(task: DllmTask, decoder: Decoder, split: str) -> list[tuple[float, float]]:
    """(TPF, accuracy in percent) at each operating point of a decoder."""
    prompts, points = task.split(split).prompts, []
    for point in decoder.frontier():
        written = task.decode(point, prompts)
        accuracy = float(task.correct(split, written.tokens).double().mean())
        points.append((parallelism(written, task.eos), 100 * accuracy))
    return points


def token_correct(task: DllmTask, split: str, written: Written, correct: Tensor) -> tuple[Tensor, Tensor]:
    """Confidence (M,) of all committed tokens and whether each is right (M,): the reference's where a problem has one
    solution, part of a right response elsewhere."""
    data = task.split(split)
    several = task.kind.coupled(data).to(correct.device)
    same = written.tokens == data.answer
    right = same & ~several[:, None] | (correct & several)[:, None]
    there = written.steps >= 0
    return written.confidence[there], right[there]


def measure(task: DllmTask, decoder: Decoder, split: str) -> Scores:
    """All official metrics, with ``accuracy``, ``nfe``, ``agreement`` and ``valid_other`` by prompt."""
    data, reference = task.split(split), task.reference(split)
    written = task.decode(decoder, data.prompts)
    correct = task.correct(split, written.tokens)
    points = curve(task, decoder, split)
    least = float(task.correct(split, reference.tokens).double().mean())
    best = max(100 * least, *(accuracy for _, accuracy in points))
    same = (written.tokens == reference.tokens).all(dim=1)
    other = correct & (written.tokens != data.answer).any(dim=1)
    count = len(written)
    metrics = {
        "aup": aup(points, best),
        "accuracy": float(correct.double().mean()),
        "nfe": float(written.forwards.double().mean()),
        "tpf": parallelism(written, task.eos),
        "tpf_canvas": written.tokens.numel() / float(written.forwards.sum()),
        "agreement": float(same.double().mean()),
        "valid_other": float(other.double().mean()),
        "ece": ece(*token_correct(task, split, written, correct)),
        "length": float(written.lengths(task.eos).double().mean()),
        "sequences": float(written.sequences.sum()) / count,
        "forwarded_tokens": float(written.forwarded.sum()) / count,
    }
    for name, part in BUDGETS.items():
        budget = max(task.length // part, task.length // task.block)
        limited = task.decode(decoder, data.prompts, budget=budget)
        metrics[f"accuracy_{name}"] = float(task.correct(split, limited.tokens).double().mean())
    values = {"accuracy": correct, "nfe": written.forwards, "agreement": same, "valid_other": other}
    return Scores(metrics, {name: np.asarray(value.cpu(), dtype=np.float64) for name, value in values.items()})
