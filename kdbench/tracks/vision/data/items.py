"""What a split consists of, before its images are rendered or read."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np


@dataclass
class Items:
    """Images of a split by reference; every array has one entry per image."""

    index: np.ndarray
    """(N,) int64: number of the image in its source."""
    y: np.ndarray
    """(N,) int64: label that learners see; -1 where they see none."""
    truth: np.ndarray
    """(N,) int64: true class; -1 where the image has none of the task's classes."""
    columns: dict[str, np.ndarray] = field(default_factory=dict)
    """Further (N,) arrays: what the source renders from, and metadata of derivations."""

    def __len__(self) -> int:
        return len(self.index)

    def take(self, rows: np.ndarray) -> Items:
        """The images at ``rows`` (positions or a mask)."""
        return Items(
            self.index[rows],
            self.y[rows],
            self.truth[rows],
            {name: values[rows] for name, values in self.columns.items()},
        )

    def labelled(self, y: np.ndarray) -> Items:
        """The same images with other visible labels."""
        return Items(self.index, y.astype(np.int64), self.truth, self.columns)

    def hidden(self) -> Items:
        """The same images without labels."""
        return self.labelled(np.full(len(self), -1))

    def having(self, **columns: np.ndarray | int | float) -> Items:
        """The same images with further columns; scalars are repeated."""
        new = {name: np.broadcast_to(np.asarray(value), (len(self),)) for name, value in columns.items()}
        return Items(self.index, self.y, self.truth, {**self.columns, **new})


def join(parts: list[Items]) -> Items:
    """All images of the parts, in order; all parts have the same columns."""
    return Items(
        np.concatenate([part.index for part in parts]),
        np.concatenate([part.y for part in parts]),
        np.concatenate([part.truth for part in parts]),
        {name: np.concatenate([part.columns[name] for part in parts]) for name in parts[0].columns},
    )


def first_per_class(labels: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """(N,) mask of the first ``counts[c]`` images of every class ``c``.

    Raises ``ValueError`` where a class has fewer images than are asked for.
    """
    mask = np.zeros(len(labels), dtype=bool)
    for c, count in enumerate(counts):
        rows = np.flatnonzero(labels == c)
        if len(rows) < count:
            raise ValueError(f"class {c} has {len(rows)} images, {count} are asked for")
        mask[rows[:count]] = True
    return mask
