"""Computation trees that occur together, with how often they do."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import torch

from kdbench.errors import ArtifactError
from kdbench.tracks.dataset_distillation.blocks.trees import Trees
from kdbench.tracks.dataset_distillation.data import numbers
from kdbench.tracks.dataset_distillation.data.graphs import Graphs
from kdbench.tracks.dataset_distillation.distilled.graphset import FILE, Learnable

if TYPE_CHECKING:
    from kdbench.tracks.dataset_distillation.task import DDTask


@dataclass(frozen=True)
class Pattern:
    """Trees that occur together in graphs of a class."""

    label: int
    trees: tuple[int, ...]
    """Numbers in the table, sorted."""
    frequency: int
    """Graphs of the class that have all of them; what the pattern is drawn in proportion to."""


class TreeSet(Learnable):
    """Patterns of computation trees. A training sample is a pattern as the disjoint union of its trees.

    A class is drawn in proportion to its training graphs, a pattern of it in proportion to its frequency. Networks pool
    the roots alone.
    """

    kind: ClassVar[str] = "trees"

    def __init__(self, hops: int, table: Trees, patterns: Sequence[Pattern], sizes: Sequence[int]) -> None:
        """``sizes[c]``: training graphs of class c. The table is copied as far as the patterns need it."""
        self.hops, self.sizes = hops, tuple(sizes)
        kept = table.closure(tree for pattern in patterns for tree in pattern.trees)
        number = {tree: place for place, tree in enumerate(kept)}
        self.table = Trees()
        for tree in kept:
            self.table.add(table.labels[tree], [(kind, number[child]) for kind, child in table.children[tree]])
        self.patterns = [Pattern(p.label, tuple(number[t] for t in p.trees), p.frequency) for p in patterns]

    @property
    def roots(self) -> list[int]:
        """Numbers of the trees that are in patterns."""
        return sorted({tree for pattern in self.patterns for tree in pattern.trees})

    def encode(self) -> bytes:
        """Each distinct subtree once (label, children), children first; then class, frequency and trees of each
        pattern.

        Edge labels are left out where there is one alone.
        """
        several = any(kind for children in self.table.children for kind, _ in children)
        out = [self.hops, int(several), len(self.sizes), *self.sizes, len(self.table)]
        for number, (label, children) in enumerate(zip(self.table.labels, self.table.children, strict=True)):
            out += [label, len(children)]
            for kind, child in children:
                out += [kind, number - child] if several else [number - child]
        out.append(len(self.patterns))
        for pattern in self.patterns:
            steps = np.diff(pattern.trees, prepend=0).tolist()
            out += [pattern.label, pattern.frequency, len(pattern.trees), *steps]
        return numbers.write(out)

    @classmethod
    def decode(cls, data: bytes) -> TreeSet:
        """What :meth:`encode` wrote."""
        found = numbers.read(data)
        hops, several, classes = next(found), next(found), next(found)
        sizes = [next(found) for _ in range(classes)]
        table = Trees()
        for number in range(next(found)):
            label, count = next(found), next(found)
            table.add(label, [(next(found) if several else 0, number - next(found)) for _ in range(count)])
        patterns = []
        for _ in range(next(found)):
            label, frequency, count = next(found), next(found), next(found)
            trees = np.cumsum([next(found) for _ in range(count)]).tolist()
            patterns.append(Pattern(label, tuple(trees), frequency))
        return cls(hops, table, patterns, sizes)

    @classmethod
    def load(cls, folder: Path, task: DDTask) -> TreeSet:
        return cls.decode((folder / FILE).read_bytes())

    @cached_property
    def _forest(self) -> tuple[Graphs, dict[int, int]]:
        roots = self.roots
        return self.table.forest(roots), {tree: row for row, tree in enumerate(roots)}

    def samples(self, rows: Sequence[int]) -> Graphs:
        """Some patterns as networks see them: a graph of unrolled trees each, with its class."""
        forest, row_of = self._forest
        chosen = [self.patterns[row] for row in rows]
        trees = torch.tensor([row_of[tree] for pattern in chosen for tree in pattern.trees], dtype=torch.int64)
        counts = torch.tensor([len(pattern.trees) for pattern in chosen], dtype=torch.int64)
        return forest.take(trees).merged(counts, torch.tensor([pattern.label for pattern in chosen], dtype=torch.int64))

    def probabilities(self) -> np.ndarray:
        """(P,) float64 of the patterns; they sum to 1. Raises ``ArtifactError`` where a class has none."""
        found = np.array([pattern.frequency for pattern in self.patterns], dtype=np.float64)
        labels = np.array([pattern.label for pattern in self.patterns], dtype=np.int64)
        totals = np.bincount(labels, found, minlength=len(self.sizes))
        if len(totals) != len(self.sizes) or (totals <= 0).any():
            raise ArtifactError("every class needs a pattern of trees")
        share = np.array(self.sizes, dtype=np.float64) / sum(self.sizes)
        return found / totals[labels] * share[labels]

    def batches(self, size: int, rng: np.random.Generator) -> Iterator[Graphs]:
        chance = self.probabilities()
        while True:
            yield self.samples(rng.choice(len(chance), size, p=chance).tolist())
