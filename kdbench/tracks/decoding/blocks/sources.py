"""Where the text comes from that a draft is distilled on: the data, the target, the draft as it is, or a mix."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from kdbench.losses.tokens import IGNORE
from kdbench.tracks.llm.data.encoding import Sequences, TextBatch
from kdbench.tracks.llm.networks.tokenizers import pad_id
from kdbench.training.pools import Pool
from kdbench.training.rollouts import MixedBatches, sampler
from kdbench.training.state import Stateful

DATA = ("gt", "teacher", "student", "mixed")
"""Ground truth; samples of the target; samples of the draft; the draft's with some probability, else one of the others.
"""


class Sources:
    """Batches from one of :data:`DATA`, for as many drafts as ask.

    The target's ``responses`` are sampled once, when they are first asked for. The draft's are sampled with the weights
    of the moment, ``pool`` at a time, and ``refresh`` batches are made of them. Of ``mixed`` batches the share
    ``fraction`` comes from there, the others are ``offline``: ``gt`` or ``teacher``.
    """

    def __init__(
        self,
        task: Any,
        target: nn.Module,
        *,
        responses: int,
        pool: int,
        refresh: int,
        fraction: float,
        offline: str,
        temperature: float,
    ) -> None:
        self.task, self.target, self.responses = task, target, responses
        self.pool, self.refresh, self.fraction, self.offline = pool, refresh, fraction, offline
        self.sampling = {"max_new": task.spec.evaluation.max_new, "temperature": temperature}
        self._written: Sequences | None = None

    def written(self) -> Sequences:
        """Training prompts with the target's responses."""
        if self._written is None:
            sample = sampler(self.task, self.target, purpose="target", **self.sampling)
            sizes = [min(128, self.responses - done) for done in range(0, self.responses, 128)]
            self._written = sequences_of((sample(size) for size in sizes), pad_id(self.task.tokenizer))
        return self._written

    def batches(self, draft: nn.Module, data: str) -> tuple[Iterable[Any], list[Stateful]]:
        """A loader for the training of ``draft``, and what it changes from step to step (``state`` of ``fit``)."""
        if data == "gt":
            return self.task.train_loader(), []
        if data == "teacher":
            return self.task.loader(self.written()), []
        chance = 1.0 if data == "student" else self.fraction
        source, _ = self.batches(draft, self.offline if data == "mixed" else "gt")
        pool = Pool(
            sampler(self.task, draft, purpose="draft", **self.sampling),
            size=max(self.pool, self.task.spec.recipe.batch_size),
            every=self.refresh,
            like=self.task.split("train").sequences.batch(torch.zeros(1, dtype=torch.int64)).to(self.task.device),
            rng=self.task.rng("pool"),
        )
        return MixedBatches(source, pool, lambda step: chance, self.task.rng("mix")), [pool]


def sequences_of(batches: Iterable[TextBatch], pad: int) -> Sequences:
    """Generated batches as rows of one split, of which the responses are scored."""
    parts = []
    for batch in batches:
        starts = (batch.labels != IGNORE).to(batch.labels.dtype).argmax(dim=1)
        columns = (batch.input_ids, batch.attention_mask.sum(dim=1), starts)
        parts.append(Sequences(*(column.int().cpu() for column in columns), pad))
    whole = parts[0]
    for part in parts[1:]:
        whole = whole + part
    return whole
