"""What a model makes of its demonstrations: changed ones, what they then speak for, and the cost of reading them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from kdbench.tracks.llm.data.encoding import Sequences
from kdbench.tracks.llm.data.icl import Episode
from kdbench.tracks.llm.networks.models import scored_logits
from kdbench.tracks.llm.networks.soft_prefix import SoftPrefix, cut_rows

Shown = tuple[tuple[str, str], ...]
"""Demonstrations: inputs and labels."""


def with_demonstrations(rows: Sequence[Episode], change: Callable[[Episode], Shown]) -> list[Episode]:
    """Episodes with changed demonstrations; the queries of one task, which stand together, go on to share them."""
    made: list[Episode] = []
    known: dict[int, Shown] = {}
    for row in rows:
        if row.task not in known:
            known[row.task] = change(row)
        made.append(replace(row, demonstrations=known[row.task]))
    return made


def permuted(rows: Sequence[Episode], rng: np.random.Generator) -> list[Episode]:
    """The demonstrations of each task in another random order."""
    return with_demonstrations(
        rows, lambda row: tuple(row.demonstrations[i] for i in rng.permutation(len(row.demonstrations)))
    )


def flipped(rows: Sequence[Episode], share: float, rng: np.random.Generator) -> list[Episode]:
    """A ``share`` of each task's demonstrations (rounded), chosen at random, have the next class as their label."""

    def change(row: Episode) -> Shown:
        count = len(row.demonstrations)
        wrong = set(rng.choice(count, size=round(share * count), replace=False).tolist())
        return tuple(
            (text, turned(row.options, label) if i in wrong else label)
            for i, (text, label) in enumerate(row.demonstrations)
        )

    return with_demonstrations(rows, change)


def inverted(rows: Sequence[Episode]) -> list[Episode]:
    """All demonstrations have the next class as their label, and with them the query: what they now speak for."""
    shown = with_demonstrations(
        rows, lambda row: tuple((text, turned(row.options, label)) for text, label in row.demonstrations)
    )
    return [replace(row, label=turned(row.options, row.label)) for row in shown]


def turned(options: Sequence[str], label: str) -> str:
    """The option after ``label``, the first after the last.

    >>> turned(("dax", "wug"), "wug")
    'dax'
    """
    return options[(options.index(label) + 1) % len(options)]


@dataclass(frozen=True)
class ReadingCost:
    """Of one query."""

    context_tokens: float
    """Mean number of places that the language model reads."""
    flops: float
    """Of the language model alone, with what stands for the demonstrations at hand."""
    once_flops: float = 0.0
    """Of what is computed once for a task, per task."""
    tasks_per_query: float = 0.0

    @property
    def shared_flops(self) -> float:
        """With its share of what is computed once for a task."""
        return self.flops + self.once_flops * self.tasks_per_query


def _counted(compute: Callable[[], object]) -> int:
    """FLOPs, with attention as plain matrix products, which the counter knows on every device."""
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        compute()
    return int(counter.get_total_flops())


def full_cost(model: nn.Module, sequences: Sequences, device: torch.device) -> ReadingCost:
    """A language model that reads the demonstrations with every query."""
    batch = sequences.batch(torch.arange(len(sequences))).to(device)
    total = _counted(lambda: scored_logits(model, batch))
    return ReadingCost(float(sequences.lengths.float().mean()), total / len(sequences))


def prefix_cost(model: SoftPrefix, sequences: Sequences, device: torch.device) -> ReadingCost:
    """A reader of vectors, which are computed once for all queries with the same demonstrations."""
    model.eval()
    model.forget()
    batch = sequences.batch(torch.arange(len(sequences))).to(device)
    cut = cut_rows(batch, model.cuts(batch))
    different = len(torch.unique(torch.cat([cut.context_mask, cut.context], dim=1), dim=0))
    once = _counted(lambda: model.vectors(cut.context, cut.context_mask))
    total = _counted(lambda: scored_logits(model, batch))  # the vectors are remembered
    places = 1 + model.config.vectors + cut.rest_mask.sum(dim=1).float().mean().item()
    return ReadingCost(places, total / len(sequences), once / different, different / len(sequences))
