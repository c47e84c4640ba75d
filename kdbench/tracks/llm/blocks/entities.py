"""Metrics of named entities: exact spans, read from BIO tags as conlleval reads them; by the package ``seqeval``."""

from __future__ import annotations

from collections.abc import Sequence

from seqeval.metrics import classification_report, f1_score, precision_score, recall_score
from torch import Tensor


def span_metrics(
    tags: Sequence[Sequence[str]], predicted: Sequence[Sequence[str]], *, types: bool = False
) -> dict[str, float]:
    """f1, precision and recall in [0, 1] over all entities: a span counts where its type and both ends are right.

    An ``I`` that follows no tag of its type begins a span. ``types`` adds ``f1/<type>`` of each type in ``tags``.

    >>> span_metrics([["B-PER", "I-PER", "O", "B-LOC"]], [["B-PER", "O", "O", "I-LOC"]])
    {'f1': 0.5, 'precision': 0.5, 'recall': 0.5}
    """
    truth, guess = [list(row) for row in tags], [list(row) for row in predicted]
    scores = {
        "f1": float(f1_score(truth, guess, zero_division=0)),
        "precision": float(precision_score(truth, guess, zero_division=0)),
        "recall": float(recall_score(truth, guess, zero_division=0)),
    }
    if types:
        report = classification_report(truth, guess, output_dict=True, zero_division=0)
        scores |= {
            f"f1/{name}": float(values["f1-score"]) for name, values in sorted(report.items()) if " " not in name
        }
    return scores


def by_sentence(values: Sequence[str], row: Tensor, count: int) -> list[list[str]]:
    """Values of words, and the sentence (M,) of each, as a list for each of ``count`` sentences."""
    rows: list[list[str]] = [[] for _ in range(count)]
    for value, i in zip(values, row.tolist(), strict=True):
        rows[i].append(value)
    return rows
