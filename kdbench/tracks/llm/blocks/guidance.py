"""What a student is weak at, and how many new texts of each class a teacher is asked for because of it.

For performance-guided distillation (Di Palo et al., EMNLP 2024): a report by class, confusions, mistakes that the
student is sure of, quotas, and the guard that keeps validation data out of the training data.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np


@dataclass(frozen=True)
class ClassReport:
    """Precision, recall, F1 in [0, 1] and number of texts of one class."""

    precision: float
    recall: float
    f1: float
    support: int


@dataclass(frozen=True)
class Mistake:
    """A text that the student takes for another class."""

    text: str
    label: int
    predicted: int
    confidence: float
    """Probability of the wrong class."""


@dataclass(frozen=True)
class Performance:
    """How a student does on validation data."""

    report: tuple[ClassReport, ...]
    """One per class."""
    confusions: tuple[tuple[int, int, int], ...] = ()
    """(class, taken for, how often), the most frequent first."""

    @property
    def f1(self) -> np.ndarray:
        """(C,) F1 of each class, 0 of classes without a text."""
        return np.array([row.f1 for row in self.report])


def performance(predicted: np.ndarray, labels: np.ndarray, classes: int) -> Performance:
    """From predicted and true classes (N,)."""
    from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

    everything = np.arange(classes)
    columns = precision_recall_fscore_support(labels, predicted, labels=everything, zero_division=0)
    report = tuple(ClassReport(float(p), float(r), float(f1), int(n)) for p, r, f1, n in zip(*columns, strict=True))
    matrix = confusion_matrix(labels, predicted, labels=everything)
    np.fill_diagonal(matrix, 0)
    pairs = sorted(((int(-matrix[i, j]), int(i), int(j)) for i, j in zip(*matrix.nonzero(), strict=True)))
    return Performance(report, tuple((i, j, -n) for n, i, j in pairs))


def hard_negatives(
    probabilities: np.ndarray, texts: Sequence[str], labels: np.ndarray, count: int, least: float = 0.0
) -> list[Mistake]:
    """The ``count`` mistakes that the student is surest of; (N, C) probabilities, N texts, (N,) labels.

    With a confidence in the wrong class of at least ``least``; the surest first.
    """
    predicted = probabilities.argmax(axis=1)
    confidence = probabilities.max(axis=1)
    wrong = np.flatnonzero((predicted != labels) & (confidence >= least))
    surest = wrong[np.argsort(-confidence[wrong], kind="stable")][:count]
    return [Mistake(texts[i], int(labels[i]), int(predicted[i]), float(confidence[i])) for i in surest.tolist()]


def quotas(found: Performance | None, classes: int, total: int, confusion_weight: float = 1.0) -> np.ndarray:
    """(C,) texts of each class to ask for, ``total`` in all.

    Without a performance evenly. With one, in proportion to ``1 - F1`` plus ``confusion_weight`` times the share of
    all confusions that a class takes part in, on either side, relative to the largest; whole numbers by largest
    remainders.

    >>> quotas(None, 4, 6).tolist()
    [2, 2, 1, 1]
    """
    weights = np.ones(classes)
    if found is not None:
        part = np.zeros(classes)
        for true, taken, often in found.confusions:
            part[[true, taken]] += often
        weights = 1 - found.f1 + confusion_weight * part / max(1.0, part.max())
    if weights.sum() == 0:  # nothing is wrong
        weights = np.ones(classes)
    exact = total * weights / weights.sum()
    whole = np.floor(exact).astype(int)
    missing = total - whole.sum()
    whole[np.argsort(-(exact - whole), kind="stable")[:missing]] += 1
    return whole


# --- what may be trained on -------------------------------------------------------------------------------------------


def shingles(text: str, size: int = 4) -> frozenset[tuple[str, ...]]:
    """Runs of ``size`` words, lower case; of a shorter text the one run of all its words."""
    words = re.findall(r"\w+", text.lower())
    return frozenset(tuple(words[i : i + size]) for i in range(max(1, len(words) - size + 1)))


@dataclass
class Guard:
    """Keeps texts apart: none is let through that repeats a protected text, or one that was let through before."""

    threshold: float = 0.5
    """Largest share of a text's shingles that may be in one other text, or of the other's that are in it."""
    leaks: int = 0
    """Texts that repeated a protected one."""
    repeats: int = 0
    """Texts that repeated one known before."""
    _places: dict[tuple[str, ...], list[int]] = field(default_factory=dict)
    _sizes: list[int] = field(default_factory=list)
    _protected: list[bool] = field(default_factory=list)

    def add(self, texts: Iterable[str], *, protected: bool) -> None:
        """Texts that may not be repeated: ``protected`` ones are validation data."""
        for text in texts:
            known = shingles(text)
            for shingle in known:
                self._places.setdefault(shingle, []).append(len(self._sizes))
            self._sizes.append(len(known))
            self._protected.append(protected)

    def repeated(self, text: str) -> list[int]:
        """Numbers of the known texts that ``text`` repeats."""
        mine = shingles(text)
        shared: dict[int, int] = {}
        for shingle in mine:
            for number in self._places.get(shingle, ()):
                shared[number] = shared.get(number, 0) + 1
        return [n for n, count in shared.items() if count > self.threshold * min(len(mine), self._sizes[n])]

    def admit(self, text: str) -> bool:
        """Whether ``text`` is new; if so it is known from now on."""
        found = self.repeated(text)
        if any(self._protected[number] for number in found):
            self.leaks += 1
        elif found:
            self.repeats += 1
        else:
            self.add([text], protected=False)
            return True
        return False
