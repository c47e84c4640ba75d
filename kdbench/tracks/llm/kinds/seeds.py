"""Few labelled texts of each class to train on, and a pool of many that only the teacher's side has read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from functools import cached_property
from typing import Any

from kdbench.errors import JobError
from kdbench.tracks.llm.data import classify
from kdbench.tracks.llm.data.classify import ClassData, Example
from kdbench.tracks.llm.data.encoding import Sequences
from kdbench.tracks.llm.data.specs import SeedDocstringsData
from kdbench.tracks.llm.kinds.classify import Docstrings


def first_of_each(examples: Iterable[Example], count: int) -> list[Example]:
    """The first ``count`` examples of each class, in their order."""
    seen: Counter[int] = Counter()
    found = []
    for example in examples:
        seen[example.label] += 1
        if seen[example.label] <= count:
            found.append(example)
    return found


class SeedDocstrings(Docstrings):
    """Docstrings by module: the training split has a few of each class, the split ``pool`` has all.

    Networks that are trained before the task begins, and the tokenizer, know the pool; the seeds are part of it.
    Validation and test data have the long tail of the pool. ``pool`` is not open to training.
    """

    data: SeedDocstringsData
    names = ("train", "val", "test", "pool")

    @cached_property
    def class_data(self) -> ClassData:
        """Raises ``JobError`` where a class of the pool has fewer texts than seeds."""
        found = classify.docstrings(self.data, self.cache)
        pool = found.splits["train"]
        seeds = first_of_each(pool, self.data.seeds)
        if len(seeds) < self.data.seeds * len(found.classes):
            few = Counter(example.label for example in pool)
            short = [name for label, name in enumerate(found.classes) if few[label] < self.data.seeds]
            raise JobError(f"{self.data.seeds} seeds of each class asked for, but {', '.join(short)} has fewer")
        return ClassData({**found.splits, "train": seeds, "pool": pool}, found.classes)

    def tokenizer_texts(self) -> Iterable[str]:
        return (example.text for example in self.class_data.splits["pool"])

    def stage_rows(self, objective: str) -> Sequences:
        return self.prepared.split("pool").sequences

    def prepare(self, task: Any) -> None:
        """The author of more texts."""
        from kdbench.tracks.llm.blocks.authors import author_network

        if task.spec.author_net() is not None:
            author_network(task)
