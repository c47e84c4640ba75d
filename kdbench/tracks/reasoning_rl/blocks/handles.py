"""A teacher made of the student itself: its weights of the start, an average of them, or those of the moment."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from copy import deepcopy
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from kdbench.tracks.llm.data.encoding import TextBatch
from kdbench.tracks.reasoning_rl.blocks.scoring import frozen_logits

if TYPE_CHECKING:
    from kdbench.tracks.reasoning_rl.task import ReasoningTask

Kind = Literal["fixed", "live", "ema"]


class Handle:
    """A network that teaches the student it was copied from; ``state`` is what a checkpoint needs of it.

    ``fixed``: the weights of the start, for a student with adapters (:func:`with_adapters`) its own without them.
    ``live``: the student itself. ``ema``: every ``every`` steps ``decay * teacher + (1 - decay) * student``; a decay
    of 0 copies the student at those steps.
    """

    def __init__(self, student: nn.Module, kind: Kind = "fixed", *, decay: float = 0.999, every: int = 1) -> None:
        if kind not in ("fixed", "live", "ema"):
            raise ValueError(f"a handle is 'fixed', 'live' or 'ema', not {kind!r}")
        if not 0 <= decay < 1 or every < 1:
            raise ValueError(f"a decay is in [0, 1) and every at least 1, not {decay} and {every}")
        self.kind, self.student, self.decay, self.every = kind, student, decay, every
        self.adapted = kind == "fixed" and hasattr(student, "disable_adapter")
        shared = kind == "live" or self.adapted
        self.model = student if shared else deepcopy(student).requires_grad_(False).eval()

    def without_adapters(self) -> AbstractContextManager[Any]:
        """The student as it was at the start, where its adapters are all that is trained."""
        return self.student.disable_adapter() if self.adapted else nullcontext()  # type: ignore[operator]

    def logits(self, task: ReasoningTask, batch: TextBatch) -> Tensor:
        """(N, V) float32 logits of the teacher on the response tokens of a batch, without gradient; metered."""
        with self.without_adapters():
            return frozen_logits(task, self.model, batch)

    @torch.no_grad()
    def step(self, count: int) -> None:
        """After optimizer step ``count`` (from 1), never within one: accumulated gradients see one teacher."""
        if self.kind != "ema" or count % self.every:
            return
        for mine, theirs in zip(self.model.parameters(), self.student.parameters(), strict=True):
            mine.lerp_(theirs, 1 - self.decay)

    @property
    def state(self) -> list[nn.Module]:
        """What of the handle changes while the student trains, for ``task.fit(..., state=...)``."""
        return [self.model] if self.kind == "ema" else []


def with_adapters(student: nn.Module, rank: int, alpha: float) -> Any:
    """The student with low-rank deltas on all linear layers of its blocks, which alone are trained (Hu et al., 2022).

    At the start they are zero; without them (``disable_adapter()``) the network stays what it was.
    """
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=rank, lora_alpha=alpha, target_modules="all-linear", task_type="CAUSAL_LM")
    return get_peft_model(student, config)
