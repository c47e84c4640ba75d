"""Labelled graphs, packed: many graphs as one large graph without edges between its parts.

Edges have both directions in undirected graphs; in computation trees they point from child to parent, and ``roots``
says which nodes stand for the graph.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from functools import cached_property

import torch
from torch import Tensor


def ranges(starts: Tensor, sizes: Tensor) -> Tensor:
    """``[s, s + 1, ..., s + n - 1]`` of each start s and size n, one after another; (G,), (G,) to (sum of sizes,)."""
    before = sizes.cumsum(0) - sizes
    total = int(sizes.sum())
    return torch.arange(total, device=starts.device) + (starts - before).repeat_interleave(sizes, output_size=total)


@dataclass(eq=False)
class Graphs:
    """Graphs with node labels, edge labels and classes."""

    nodes: Tensor
    """(V,) int64: node labels, graph after graph."""
    edges: Tensor
    """(2, E) int64: source and target among all nodes, graph after graph."""
    kinds: Tensor
    """(E,) int64: edge labels."""
    sizes: Tensor
    """(G,) int64: nodes of each graph."""
    counts: Tensor
    """(G,) int64: edges of each graph."""
    y: Tensor
    """(G,) int64: classes."""
    roots: Tensor | None = None
    """(V,) bool: nodes that stand for their graph; None: all do."""

    def __len__(self) -> int:
        return len(self.y)

    @cached_property
    def starts(self) -> Tensor:
        """(G,) position of the first node of each graph."""
        return self.sizes.cumsum(0) - self.sizes

    @cached_property
    def owners(self) -> Tensor:
        """(V,) graph of each node."""
        return torch.arange(len(self), device=self.nodes.device).repeat_interleave(
            self.sizes, output_size=len(self.nodes)
        )

    def take(self, rows: Tensor) -> Graphs:
        """The graphs at some positions; a position may come several times."""
        sizes, counts, starts = self.sizes[rows], self.counts[rows], self.starts[rows]
        nodes = ranges(starts, sizes)
        edges = ranges((self.counts.cumsum(0) - self.counts)[rows], counts)
        moved = (sizes.cumsum(0) - sizes - starts).repeat_interleave(counts, output_size=len(edges))
        return Graphs(
            self.nodes[nodes],
            self.edges[:, edges] + moved,
            self.kinds[edges],
            sizes,
            counts,
            self.y[rows],
            None if self.roots is None else self.roots[nodes],
        )

    def merged(self, groups: Tensor, y: Tensor) -> Graphs:
        """Disjoint unions of ``groups[i]`` graphs that follow each other, with classes ``y``; both (G',)."""
        index = torch.arange(len(groups), device=groups.device).repeat_interleave(groups)
        sizes = torch.zeros_like(groups).index_add(0, index, self.sizes)
        counts = torch.zeros_like(groups).index_add(0, index, self.counts)
        return Graphs(self.nodes, self.edges, self.kinds, sizes, counts, y, self.roots)

    def to(self, device: torch.device) -> Graphs:
        moved = {f.name: getattr(self, f.name) for f in fields(self)}
        return Graphs(**{name: None if value is None else value.to(device) for name, value in moved.items()})

    def neighbours(self) -> list[list[list[tuple[int, int]]]]:
        """For each graph, for each of its nodes, (edge label, node) of the edges that end in it; nodes count from 0."""
        found: list[list[list[tuple[int, int]]]] = [[[] for _ in range(size)] for size in self.sizes.tolist()]
        owners, starts = self.owners.tolist(), self.starts.tolist()
        for source, target, kind in zip(*self.edges.tolist(), self.kinds.tolist(), strict=True):
            graph = owners[target]
            found[graph][target - starts[graph]].append((kind, source - starts[graph]))
        return found


Plain = tuple[Sequence[int], Sequence[tuple[int, int, int]], int]
"""A graph as node labels, undirected edges (node, node, edge label), and class."""


def pack(graphs: Iterable[Plain]) -> Graphs:
    """Undirected graphs, each edge in both directions."""
    nodes: list[int] = []
    edges: list[tuple[int, int]] = []
    kinds: list[int] = []
    sizes, counts, classes = [], [], []
    for labels, pairs, label in graphs:
        start = len(nodes)
        nodes += labels
        for u, v, kind in pairs:
            edges += [(start + u, start + v), (start + v, start + u)]
            kinds += [kind, kind]
        sizes.append(len(labels))
        counts.append(2 * len(pairs))
        classes.append(label)
    ends = torch.tensor(edges, dtype=torch.int64).reshape(-1, 2).T.contiguous()
    numbers = [torch.tensor(values, dtype=torch.int64) for values in (kinds, sizes, counts, classes)]
    return Graphs(torch.tensor(nodes, dtype=torch.int64), ends, *numbers)


def unpack(graphs: Graphs) -> list[Plain]:
    """As they were packed, undirected edges with the smaller node first and sorted. Raises ``ValueError`` for trees."""
    if graphs.roots is not None:
        raise ValueError("computation trees are no undirected graphs")
    found: list[Plain] = []
    firsts = (graphs.counts.cumsum(0) - graphs.counts).tolist()
    spans = zip(
        graphs.starts.tolist(), graphs.sizes.tolist(), firsts, graphs.counts.tolist(), graphs.y.tolist(), strict=True
    )
    for start, size, first, count, label in spans:
        ends = (graphs.edges[:, first : first + count] - start).T.tolist()
        kinds = graphs.kinds[first : first + count].tolist()
        pairs = sorted((u, v, kind) for (u, v), kind in zip(ends, kinds, strict=True) if u < v)
        found.append((graphs.nodes[start : start + size].tolist(), pairs, label))
    return found
