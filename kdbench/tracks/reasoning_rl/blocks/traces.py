"""Fixed responses to train on: written by a teacher or by the student itself, checked by the verifier."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from kdbench.errors import JobError
from kdbench.tracks.llm.batches import Loader
from kdbench.tracks.llm.data.encoding import pack
from kdbench.tracks.reasoning_rl.blocks.rollouts import Rollouts

if TYPE_CHECKING:
    from kdbench.tracks.reasoning_rl.task import ReasoningTask


def traces(
    task: ReasoningTask,
    writer: nn.Module,
    problems: int,
    *,
    samples: int = 1,
    temperature: float = 1.0,
    verified: bool = True,
    purpose: str = "traces",
) -> Rollouts:
    """Responses of ``writer`` to training problems at random, ``samples`` to each; only right ones where ``verified``.

    Raises ``JobError`` where none is right.
    """
    rows, generator = task.problems("train"), task.generator(purpose)
    chosen = torch.randperm(len(rows), generator=generator)[:problems].tolist()
    made = task.rollouts(writer, [rows[i] for i in chosen], group=samples, temperature=temperature, generator=generator)
    if not verified:
        return made
    kept = made.correct.nonzero()[:, 0]
    if not len(kept):
        raise JobError(f"none of {len(made)} sampled responses solves its problem: there is nothing to train on")
    return made.rows(kept)


def loader_of(task: ReasoningTask, written: Rollouts, batch_size: int) -> Loader:
    """The responses as batches in the order of the stream ``data``."""
    rows = [[*prompt, *response] for prompt, response in zip(written.prompts, written.responses, strict=True)]
    packed = pack(rows, [len(prompt) for prompt in written.prompts], task.pad)
    return task.loader(packed, batch_size)
