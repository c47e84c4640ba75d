"""Responses that models write to a chosen set of prompts, fixed once or written anew, as data to train on."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import reduce
from operator import add
from typing import Any, Literal

import torch
from torch import Tensor, nn

from kdbench.losses.tokens import IGNORE
from kdbench.task import count_parameters
from kdbench.tracks.llm.data.encoding import Sequences, TextBatch
from kdbench.tracks.llm.networks.tokenizers import pad_id
from kdbench.training.loaders import Order


def sequences_of(batch: TextBatch, pad: int) -> Sequences:
    """Generated rows, padded on the right, as a split of their own: start token, prompt, response."""
    lengths = batch.attention_mask.sum(dim=1)
    starts = lengths - (batch.labels != IGNORE).sum(dim=1)
    return Sequences(batch.input_ids.int().cpu(), lengths.int().cpu(), starts.int().cpu(), pad)


def write(
    task: Any,
    model: nn.Module,
    rows: Tensor,
    *,
    generator: torch.Generator | None,
    max_new: int,
    temperature: float = 1.0,
    batch_size: int = 128,
    split: str = "train",
) -> Sequences:
    """One response of ``model`` to the prompt of each of ``rows`` (N,) of a split, in their order.

    ``temperature`` 0 is greedy and needs no generator. Spends what :meth:`LLMTask.rollout` does, and ``flops``: two
    per parameter and token read or written.
    """
    parameters, parts = count_parameters(model), []
    for some in rows.split(batch_size):
        prompts = task.prompts_of(split, some)
        batch = task.rollout(model, prompts, max_new=max_new, temperature=temperature, generator=generator)
        task.budget.spend("flops", 2.0 * parameters * int(batch.attention_mask.sum()))
        parts.append(sequences_of(batch, pad_id(task.tokenizer)))
    return reduce(add, parts)


Fresh = Literal["never", "pass", "batch"]


class Passes:
    """Batches of prompts with responses, in random order; each iteration is one pass over the same prompts.

    The passes differ in their responses alone: ``fresh="never"`` writes ``completions`` responses to each prompt
    before the first pass and takes them in turn, pass after pass; ``"pass"`` writes new ones before each pass,
    ``"batch"`` before each batch. Where the writer does not change, ``"never"`` with as many completions as passes
    gives exactly the batches of ``"pass"``.
    """

    def __init__(
        self,
        rows: Tensor,
        size: int,
        write: Callable[[Tensor], Sequences],
        order: torch.Generator,
        *,
        fresh: Fresh = "never",
        completions: int = 1,
        slots: int | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        """``write(rows)`` gives a response to each prompt. A pass has ``slots`` rows (default: one per prompt), the
        prompts and their responses repeated in turn."""
        self.rows, self.write, self.fresh, self.device = rows, write, fresh, device
        self.order = Order(len(rows) if slots is None else slots, size, order)
        self.passes = 0
        """Passes that have begun."""
        self.kept = [write(rows) for _ in range(completions)] if fresh == "never" else []
        self._resumed = False

    def __len__(self) -> int:
        """Batches of a pass."""
        return len(self.order)

    def __iter__(self) -> Iterator[TextBatch]:
        if not self._resumed:
            self.passes += 1
            if self.fresh == "pass":
                self.kept = [self.write(self.rows)]
        self._resumed = False
        return map(self._batch, iter(self.order))

    def _batch(self, slots: Tensor) -> TextBatch:
        prompts = slots % len(self.rows)
        if self.fresh == "batch":
            written = self.write(self.rows[prompts])
            return written.batch(torch.arange(len(written)), "").to(self.device)
        return self.kept[(self.passes - 1) % len(self.kept)].batch(prompts, "").to(self.device)

    def state_dict(self) -> dict[str, Any]:
        """Where the pass is, and its responses where they are not those of the start; generators are no part of it."""
        state: dict[str, Any] = {"passes": self.passes, "order": self.order.state_dict()}
        if self.fresh == "pass":
            state["kept"] = [{"ids": s.ids, "lengths": s.lengths, "starts": s.starts, "pad": s.pad} for s in self.kept]
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The next iteration goes on from there."""
        self.passes = state["passes"]
        self.order.load_state_dict(state["order"])
        self._resumed = self.passes > 0
        if self.fresh == "pass":
            self.kept = [Sequences(**each) for each in state["kept"]]
