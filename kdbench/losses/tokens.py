"""From token sequences to positions and back: shifting, selecting, next-token loss, reductions.

Labels are aligned with the inputs (the convention of transformers) and :data:`IGNORE` where nothing is scored. The
logits at position t predict token t + 1: the first token of a response is scored by the last position of its prompt;
prompt and padding are never scored, the end-of-text token is. Everything here shifts exactly once; batches are not
shifted by their makers.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from kdbench.losses.divergences import log_softmax

IGNORE = -100
"""Label of a position that is not scored."""

Reduction = Literal["tok_mean", "seq_mean"]


class Positions(NamedTuple):
    """The scored positions of a batch, row-major over (B, L - 1)."""

    logits: Tensor
    """(N, V): what predicts each target."""
    targets: Tensor
    """(N,) int64: the token that follows each position."""
    sequence: Tensor
    """(N,) int64: the row of the batch that each position belongs to, ascending."""


def shift_mask(labels: Tensor) -> tuple[Tensor, Tensor]:
    """Targets (B, L - 1) and which of them are scored (B, L - 1, bool), from labels (B, L).

    Entry t belongs to the logits at position t. Targets that are not scored stay :data:`IGNORE`.
    """
    targets = labels[:, 1:]
    return targets, targets != IGNORE


def scored_positions(logits: Tensor, labels: Tensor) -> Positions:
    """The positions of logits (B, L, V) that labels (B, L) score."""
    targets, mask = shift_mask(labels)
    return Positions(logits[:, :-1][mask], targets[mask], mask.nonzero()[:, 0])


def next_token_nll(logits: Tensor, labels: Tensor) -> Tensor:
    """Negative log-likelihood in nats of each next token, (B, L - 1), 0 where nothing is scored; float32."""
    targets, _ = shift_mask(labels)
    log_q = log_softmax(logits[:, :-1])
    return F.nll_loss(log_q.transpose(1, 2), targets, ignore_index=IGNORE, reduction="none")


def tok_mean(values: Tensor, mask: Tensor | None = None) -> Tensor:
    """Mean over all scored tokens of the batch: every token weighs the same. 0 where none is scored.

    ``values`` is (N,), or any shape with a ``mask`` of the same shape (bool or weights 0 and 1).
    """
    if mask is None:
        return values.sum() / max(1, values.numel())
    weights = mask.to(values.dtype)
    return (values * weights).sum() / weights.sum().clamp_min(1)


def seq_mean(values: Tensor, sequence: Tensor) -> Tensor:
    """Mean over sequences of the mean over each one's tokens: every sequence weighs the same.

    ``values`` (N,), ``sequence`` (N,) int64 as in :class:`Positions`. Sequences without a scored token do not count.
    """
    if values.numel() == 0:
        return values.sum()
    rows = int(sequence.max()) + 1
    sums = values.new_zeros(rows).index_add(0, sequence, values)
    counts = values.new_zeros(rows).index_add(0, sequence, torch.ones_like(values))
    return (sums / counts.clamp_min(1)).sum() / (counts > 0).sum()


def reduce_tokens(values: Tensor, sequence: Tensor, reduction: Reduction = "tok_mean") -> Tensor:
    """Values (N,) of scored tokens to a scalar, by :func:`tok_mean` or :func:`seq_mean`."""
    if reduction == "tok_mean":
        return tok_mean(values)
    if reduction == "seq_mean":
        return seq_mean(values, sequence)
    raise ValueError(f"a reduction is 'tok_mean' or 'seq_mean', not {reduction!r}")


def uld(student: Tensor, teacher: Tensor, *, temperature: float = 1.0) -> Tensor:
    """Universal logit distance of two vocabularies (Boizard et al. 2025): (N, V_s), (N, V_t) to (N,).

    L1 distance between the probabilities of each position sorted in descending order, the smaller vocabulary padded
    with zeros: the Wasserstein distance between the two multisets of probabilities. In [0, 2]. The teacher is
    detached.
    """
    q = log_softmax(student, temperature).exp().sort(dim=-1, descending=True).values
    p = log_softmax(teacher.detach(), temperature).exp().sort(dim=-1, descending=True).values
    size = max(q.shape[-1], p.shape[-1])
    q, p = F.pad(q, (0, size - q.shape[-1])), F.pad(p, (0, size - p.shape[-1]))
    return (q - p).abs().sum(-1)


def truncate_pairwise(student: Positions, teacher: Positions) -> tuple[Tensor, Tensor]:
    """Logits (N, V_s), (N, V_t) of two tokenisations of the same sequences, paired by position within each sequence.

    The first scored token of a sequence pairs with the first of the other tokenisation, and so on up to the shorter
    of the two, as in the universal logit distance.
    """
    mine, theirs = [], []
    for row in torch.unique(student.sequence).tolist():
        a, b = student.logits[student.sequence == row], teacher.logits[teacher.sequence == row]
        length = min(len(a), len(b))
        mine.append(a[:length])
        theirs.append(b[:length])
    return torch.cat(mine), torch.cat(theirs)
