"""Labelled graphs."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import nn

from kdbench.cache import Cache
from kdbench.errors import ArtifactError, JobError
from kdbench.task import Scores
from kdbench.tracks.dataset_distillation.data import graph_sets
from kdbench.tracks.dataset_distillation.data.graphs import Graphs
from kdbench.tracks.dataset_distillation.data.specs import GraphsData
from kdbench.tracks.dataset_distillation.distilled.base import Distilled
from kdbench.tracks.dataset_distillation.distilled.graphset import GraphSet, Learnable, encode_graphs
from kdbench.tracks.dataset_distillation.distilled.trees import TreeSet
from kdbench.tracks.dataset_distillation.distilled.whole import Whole
from kdbench.tracks.dataset_distillation.evaluate import graphs as scoring
from kdbench.tracks.dataset_distillation.kinds.base import Kind
from kdbench.tracks.dataset_distillation.networks.graphs import build_graph_net

if TYPE_CHECKING:
    from kdbench.tracks.dataset_distillation.spec import DDSpec
    from kdbench.tracks.dataset_distillation.task import DDTask


class GraphsKind(Kind):
    """Graphs of :mod:`kdbench.tracks.dataset_distillation.data.graph_sets`, of which a share of the bytes may be
    kept."""

    def __init__(self, spec: DDSpec, cache: Cache) -> None:
        super().__init__(spec, cache)
        assert isinstance(spec.data, GraphsData)
        self.data = spec.data
        self.set = graph_sets.load(spec.data, cache)
        self.classes = self.set.classes

    @cached_property
    def whole_bytes(self) -> int:
        """Bytes of the training split."""
        return len(encode_graphs(self.set.splits["train"]))

    @property
    def budget(self) -> int:
        """Bytes that a distilled set may have."""
        return int(self.data.share * self.whole_bytes)

    def split(self, name: str) -> Graphs:
        if name not in self.set.splits:
            raise JobError(f"{self.spec.name} has no split {name!r}; it has {', '.join(self.set.splits)}")
        return self.set.splits[name]

    def build(self, arch: str) -> nn.Module:
        return build_graph_net(
            arch,
            labels=self.set.labels,
            kinds=self.set.kinds,
            classes=self.classes,
            pool=self.data.pool,
            dropout=self.data.dropout,
        )

    def fit_member(self, network: nn.Module, generator: torch.Generator, device: torch.device) -> None:
        raise JobError(f"{self.spec.name} has graphs, for which no committee is trained: leave committee empty")

    # --- distilled sets ---------------------------------------------------------------------------------------------

    def check(self, task: DDTask, distilled: Distilled) -> None:
        if isinstance(distilled, Whole):
            return
        if not isinstance(distilled, Learnable):
            raise ArtifactError(
                f"train returned a {type(distilled).__name__}, but {self.spec.name} evaluates a GraphSet or a TreeSet"
            )
        if isinstance(distilled, TreeSet):
            distilled.probabilities()
            labels, kinds = distilled.table.labels, [k for c in distilled.table.children for k, _ in c]
            classes = [pattern.label for pattern in distilled.patterns]
            if len(distilled.sizes) != self.classes:
                raise ArtifactError(f"the set knows {len(distilled.sizes)} classes, the task has {self.classes}")
        elif isinstance(distilled, GraphSet):
            graphs = distilled.graphs
            labels, kinds, classes = graphs.nodes.tolist(), graphs.kinds.tolist(), graphs.y.tolist()
        else:
            raise ArtifactError(f"{self.spec.name} does not know how to check a {type(distilled).__name__}")
        for what, values, count in (
            ("node labels", labels, self.set.labels),
            ("edge labels", kinds, self.set.kinds),
            ("classes", classes, self.classes),
        ):
            if values and not 0 <= min(values) <= max(values) < count:
                raise ArtifactError(f"{what} of the set are whole numbers from 0 to {count - 1}")
        size = len(distilled.encode())
        if size > self.budget:
            raise ArtifactError(
                f"the set has {size} bytes, but may have {self.budget}: {self.data.share:g} of {self.whole_bytes}"
            )

    def whole(self, task: DDTask) -> Whole:
        return Whole()

    def whole_floats(self, task: DDTask) -> Mapping[str, int]:
        return {"data": -(-self.whole_bytes // 4), "labels": 0, "bytes": self.whole_bytes}

    def random(self, task: DDTask, generator: torch.Generator) -> GraphSet:
        """As many random graphs as have the bytes of the budget, one of each class in turns.

        Raises ``JobError`` where not one of each class fits.
        """
        train = self.split("train")
        order = torch.randperm(len(train), generator=generator)
        turns = [order[train.y[order] == label] for label in range(self.classes)]
        deepest = max(map(len, turns))
        rows = [int(rows[k]) for k in range(deepest) for rows in turns if k < len(rows)]
        low, high = 0, len(rows)  # the number of bytes grows with the number of graphs
        while low < high:
            middle = (low + high + 1) // 2
            fits = len(encode_graphs(train.take(torch.tensor(rows[:middle])))) <= self.budget
            low, high = (middle, high) if fits else (low, middle - 1)
        if low < self.classes:
            raise JobError(f"the {self.budget} bytes of {self.spec.name} are fewer than a graph of each class takes")
        return GraphSet(train.take(torch.tensor(rows[:low])))

    # --- scores -----------------------------------------------------------------------------------------------------

    def references(self, task: DDTask) -> dict[str, float]:
        return scoring.references(task)

    def validate(self, task: DDTask, distilled: Distilled) -> dict[str, float]:
        return scoring.validate(task, distilled)

    def measure(self, task: DDTask, distilled: Distilled) -> Scores:
        return scoring.measure(task, distilled)
