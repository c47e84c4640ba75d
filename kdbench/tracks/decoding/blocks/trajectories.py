"""How a model's guesses become its response, block by block, and which of them a later model learns from.

A trajectory holds of every block all that Jacobi decoding made of it: the random guesses, each refinement, and the
fixed point, which is the model's own greedy response. For training one iterate of each block is chosen by how wrong it
still is (Hu et al., ICML 2026, Jacobi Forcing): over a window of w blocks the wanted share rises from 0 to 1
and begins anew, so that long stretches of noise are met little by little.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from kdbench.errors import UsageError
from kdbench.task import count_parameters
from kdbench.tracks.decoding.blocks.guesses import Window, agreement
from kdbench.tracks.decoding.blocks.packing import Example
from kdbench.tracks.decoding.decoders.jacobi import jacobi
from kdbench.tracks.llm.networks.tokenizers import pad_id

FORMAT = 1
"""Bumped when the same model and prompts give other trajectories."""
BATCH = 64
"""Prompts that are decoded at a time."""

Schedule = Literal["progressive", "reverse", "random"]
"""How the wanted noise runs over a window of blocks: from 0 to 1, from 1 to 0, or in any order."""


@dataclass(frozen=True)
class Trajectory:
    """A prompt, and of each block of the response its iterates; the last one of a block is its fixed point."""

    prompt: list[int]
    blocks: list[list[list[int]]]

    @property
    def response(self) -> list[int]:
        """The fixed points, one behind the other."""
        return [token for block in self.blocks for token in block[-1]]


def noisiness(iterate: Sequence[int], fixed: Sequence[int]) -> float:
    """Share of a block from the first wrong guess on, in [0, 1].

    >>> noisiness([5, 6, 9, 8], [5, 6, 7, 8]), noisiness([5, 6], [5, 6])
    (0.5, 0.0)
    """
    return (len(fixed) - agreement(iterate, fixed)) / len(fixed)


def wanted(number: int, window: int, schedule: Schedule, rng: np.random.Generator) -> float:
    """Noise that is wanted of the block ``number`` (from 0) of a response: one of ``window`` shares from 0 to 1."""
    ratios = np.linspace(0.0, 1.0, window)
    if schedule == "random":
        return float(ratios[rng.integers(window)])
    place = number % window
    return float(ratios[place if schedule == "progressive" else window - 1 - place])


def choose(iterates: Sequence[Sequence[int]], ratio: float) -> int:
    """The iterate of a block whose noise is nearest to ``ratio``; the earlier one of two."""
    return int(np.argmin([abs(noisiness(iterate, iterates[-1]) - ratio) for iterate in iterates]))


def example(trajectory: Trajectory, window: int, schedule: Schedule, rng: np.random.Generator) -> Example:
    """A row to train on: of each block the chosen iterate, and the fixed point.

    Raises ``UsageError`` for a window of less than two blocks, which would be of clean ones alone.
    """
    if window < 2:
        raise UsageError(f"a window of noise has at least 2 blocks, not {window}")
    noisy = [
        block[choose(block, wanted(number, window, schedule, rng))] for number, block in enumerate(trajectory.blocks)
    ]
    return Example(trajectory.prompt, noisy, [block[-1] for block in trajectory.blocks])


@dataclass
class Collection:
    """Trajectories, and what they have cost."""

    trajectories: list[Trajectory]
    read: int
    """Tokens that the model has read for them."""

    @property
    def generated(self) -> int:
        """Tokens of the responses."""
        return sum(len(trajectory.response) for trajectory in self.trajectories)

    @property
    def iterations(self) -> float:
        """Mean number of iterates of a block before its fixed point."""
        counts = [len(block) - 1 for trajectory in self.trajectories for block in trajectory.blocks]
        return sum(counts) / len(counts)

    def save(self, folder: Path) -> None:
        """One file of all tokens and one of how they are divided."""
        iterates = [iterate for one in self.trajectories for block in one.blocks for iterate in block]
        tensors = {
            "prompts": _flat(one.prompt for one in self.trajectories),
            "prompt_lengths": _flat([[len(one.prompt) for one in self.trajectories]]),
            "blocks": _flat([[len(one.blocks) for one in self.trajectories]]),
            "iterates": _flat([[len(block) for one in self.trajectories for block in one.blocks]]),
            "lengths": _flat([[len(iterate) for iterate in iterates]]),
            "tokens": _flat(iterates),
        }
        save_file(tensors, folder / "trajectories.safetensors")
        (folder / "cost.json").write_text(json.dumps({"read": self.read}) + "\n")

    @classmethod
    def load(cls, folder: Path) -> Collection:
        """Read what :meth:`save` wrote."""
        tensors = {name: value.tolist() for name, value in load_file(folder / "trajectories.safetensors").items()}
        iterates = _divided(tensors["tokens"], tensors["lengths"])
        blocks = _divided(iterates, tensors["iterates"])
        rows = _divided(blocks, tensors["blocks"])
        prompts = _divided(tensors["prompts"], tensors["prompt_lengths"])
        trajectories = [Trajectory(prompt, row) for prompt, row in zip(prompts, rows, strict=True)]
        return cls(trajectories, json.loads((folder / "cost.json").read_text())["read"])


def _flat(rows: Any) -> torch.Tensor:
    return torch.tensor([value for row in rows for value in row], dtype=torch.int32)


def _divided(values: Sequence[Any], lengths: Sequence[int]) -> list[list[Any]]:
    ends = np.cumsum(lengths).tolist()
    return [list(values[end - length : end]) for end, length in zip(ends, lengths, strict=True)]


def collect(
    model: nn.Module, prompts: Sequence[Sequence[int]], block: int, *, max_new: int, eos: int, pad: int
) -> Collection:
    """Trajectories of greedy Jacobi decoding, a block of ``block`` tokens at a time.

    Prompts of similar length are decoded together. The random guesses are drawn from the text so far.
    """
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    found: dict[int, Trajectory] = {}
    read = 0
    for start in range(0, len(order), BATCH):
        chosen = order[start : start + BATCH]
        window = Window(block=block, blocks=1, pool=0)
        rows, counter = jacobi(model, [prompts[i] for i in chosen], window, max_new=max_new, eos=eos, pad=pad)
        found |= {i: Trajectory(row.prompt, row.trajectory()) for i, row in zip(chosen, rows, strict=True)}
        read += counter.tokens + counter.prefill_tokens
    return Collection([found[i] for i in range(len(prompts))], read)


def collected(task: Any, model: nn.Module | None, count: int, block: int) -> Collection:
    """Trajectories of a model on the first ``count`` training prompts of a task, charged as FLOPs and generated tokens.

    ``model`` None is the task's target: its trajectories are the same for all jobs and wait in the cache, but every
    job pays for them.
    """
    spec = task.spec
    prompts = task.prompts_of("train", torch.arange(min(count, len(task.split("train"))))).ids
    limits = {"max_new": spec.evaluation.max_new, "eos": task.tokenizer.eos_token_id, "pad": pad_id(task.tokenizer)}
    writer = task.teacher() if model is None else model
    if model is None:
        key = {**spec.responses_key("train", 0.0, len(prompts)), "block": block, "format": FORMAT}
        folder = task.cache.get(
            "trajectories", key, lambda folder: collect(writer, prompts, block, **limits).save(folder)
        )
        collection = Collection.load(folder)
    else:
        collection = collect(writer, prompts, block, **limits)
    task.budget.spend("flops", 2.0 * count_parameters(writer) * collection.read)
    task.budget.spend("generated_tokens", collection.generated)
    return collection
