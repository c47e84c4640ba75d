"""Domains of text: which rows belong to each, batches of a mixture of them, and how well a model knows each.

The rows of a text task say their domain (:class:`kdbench.tracks.llm.data.encoding.Chunk`); other rows have none.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from kdbench.errors import JobError
from kdbench.task import count_parameters
from kdbench.tracks.llm.data.encoding import Chunk, Sequences, TextBatch
from kdbench.tracks.llm.kinds.base import Split
from kdbench.tracks.llm.networks.models import scored_logits, targets_of, token_nll
from kdbench.tracks.llm.outputs import weights_digest
from kdbench.tracks.llm.scoring import scored_tokens
from kdbench.tracks.llm.spec import Hub
from kdbench.training.mixtures import Mixture

if TYPE_CHECKING:
    from kdbench.tracks.llm.task import LLMTask


def rows_by_domain(split: Split) -> dict[str, Tensor]:
    """Rows (n_d,) int64 of each domain of a split, ascending, domains by name. Raises ``JobError`` for other rows."""
    if split.kind is not Chunk:
        raise JobError("domains are known of text only, not of instructions or classes")
    names = np.array([chunk.domain for chunk in split.rows])
    return {name: torch.from_numpy(np.flatnonzero(names == name)) for name in sorted(set(names.tolist()))}


class MixtureLoader:
    """Batches of a split's rows as a :class:`~kdbench.training.mixtures.Mixture` draws them, without end."""

    def __init__(self, sequences: Sequences, mixture: Mixture, split: str, device: torch.device) -> None:
        """``split`` names what the rows of the mixture count in."""
        self.sequences, self.mixture, self.split, self.device = sequences, mixture, split, device

    def __iter__(self) -> Iterator[TextBatch]:
        return map(self._batch, self.mixture)

    def _batch(self, rows: Tensor) -> TextBatch:
        return self.sequences.batch(rows, self.split).to(self.device)

    def state_dict(self) -> dict[str, Any]:
        return self.mixture.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.mixture.load_state_dict(state)


@torch.no_grad()
def row_nll(task: LLMTask, logits_of: Callable[[TextBatch], Tensor], sequences: Sequences, size: int) -> np.ndarray:
    """NLL in nats of each row, the sum over its scored tokens, (N,) float64; ``size`` rows at a time.

    ``logits_of(batch)`` gives logits (n, V) on the scored positions of a batch whose rows belong to no split.
    """
    sums = []
    for batch in sequences.batches(size, ""):
        batch = batch.to(task.device)
        nll = token_nll(logits_of(batch), targets_of(batch)).double()
        row = batch.scored.nonzero()[:, 0]
        sums.append(torch.zeros(len(batch), dtype=torch.float64, device=nll.device).index_add(0, row, nll).cpu())
    return torch.cat(sums).numpy()


def model_nll(task: LLMTask, model: nn.Module, sequences: Sequences) -> np.ndarray:
    """:func:`row_nll` of a model in eval mode, whose mode is put back. Spends ``flops`` during training."""
    was_training = model.training
    model.eval()
    try:
        sums = row_nll(task, lambda batch: scored_logits(model, batch), sequences, task.spec.evaluation.batch_size)
    finally:
        model.train(was_training)
    if task.phase == "train":
        task.budget.spend("flops", forward_flops(model, sequences))
    return sums


def teacher_nll(task: LLMTask, name: str) -> np.ndarray:
    """:func:`row_nll` of the teacher on every row of a split, computed once and shared by all jobs.

    A job that asks for it in training is charged what it costs, ``flops`` and ``teacher_queries``, cached or not.
    """
    split = task.split(name)

    def make(folder: Path) -> None:
        sums = row_nll(
            task,
            lambda batch: task.scored_teacher(batch, metered=False),
            split.sequences,
            task.spec.evaluation.batch_size,
        )
        np.save(folder / "nll.npy", sums)
        (folder / "flops.json").write_text(json.dumps(forward_flops(task.teacher(), split.sequences)))

    key = {"track": "llm", "rows": split.digest, "teacher": task.spec.teacher_identity()}
    if isinstance(task.spec.teacher, Hub):  # a name alone does not say which weights
        key["weights"] = weights_digest(task.teacher())
    folder = task.cache.get("row-nll", key, make)
    if task.phase == "train":
        task.budget.spend("flops", json.loads((folder / "flops.json").read_text()))
        task.budget.spend("teacher_queries", len(split))
    sums: np.ndarray = np.load(folder / "nll.npy")
    return sums


def forward_flops(model: nn.Module, sequences: Sequences) -> float:
    """FLOPs of one forward: two for each parameter and token."""
    return 2.0 * count_parameters(model) * int(sequences.lengths.sum())


def domain_losses(nll: np.ndarray, sequences: Sequences, domains: Sequence[Tensor]) -> np.ndarray:
    """Mean NLL in nats per scored token of each domain, (D,), from the sums (N,) of all rows."""
    tokens = scored_tokens(sequences)
    return np.array([nll[rows.numpy()].sum() / tokens[rows.numpy()].sum() for rows in domains])
