"""Computation trees: what a network with L layers of message passing sees of a graph from one of its nodes.

The L-hop tree of a node has the node's label at its root; its children are the (L-1)-hop trees of *all* neighbours, the
one that led here included, each under its edge label. Two nodes with equal trees get equal embeddings. A :class:`Trees`
table holds every distinct subtree once, so that the number of a tree is exact: equal numbers mean isomorphic trees and
the other way round (no hash that could collide).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

import torch

from kdbench.tracks.dataset_distillation.data.graphs import Graphs

Children = tuple[tuple[int, int], ...]
"""(edge label, number of the child's tree), sorted."""


class Trees:
    """Rooted trees with labels of nodes and edges, unordered, by number; children have smaller numbers than parents."""

    def __init__(self) -> None:
        self.labels: list[int] = []
        self.children: list[Children] = []
        self._known: dict[tuple[int, Children], int] = {}
        self._strings: dict[int, str] = {}

    def __len__(self) -> int:
        return len(self.labels)

    def add(self, label: int, children: Iterable[tuple[int, int]] = ()) -> int:
        """The number of a tree, which is a new one where the table does not have it yet."""
        key = (label, tuple(sorted(children)))
        if key not in self._known:
            self._known[key] = len(self.labels)
            self.labels.append(label)
            self.children.append(key[1])
        return self._known[key]

    def canonical(self, tree: int) -> str:
        """``label(edge:child,edge:child)`` with sorted children: equal for isomorphic trees of any table, and for no
        others."""
        if tree not in self._strings:
            inner = ",".join(sorted(f"{kind}:{self.canonical(child)}" for kind, child in self.children[tree]))
            self._strings[tree] = f"{self.labels[tree]}({inner})"
        return self._strings[tree]

    def closure(self, trees: Iterable[int]) -> list[int]:
        """The trees and all their subtrees, by number."""
        found: set[int] = set()
        left = list(trees)
        while left:
            tree = left.pop()
            if tree not in found:
                found.add(tree)
                left += [child for _, child in self.children[tree]]
        return sorted(found)

    def nodes(self, tree: int) -> int:
        """Nodes of the tree when it is unrolled."""
        return 1 + sum(self.nodes(child) for _, child in self.children[tree])

    def unrolled(self, tree: int) -> tuple[list[int], list[tuple[int, int, int]]]:
        """Labels of the nodes, the root first, and (child, parent, edge label) of the edges."""
        labels, edges = [self.labels[tree]], list[tuple[int, int, int]]()
        left = [(0, tree)]
        while left:
            place, number = left.pop()
            for kind, child in self.children[number]:
                edges.append((len(labels), place, kind))
                left.append((len(labels), child))
                labels.append(self.labels[child])
        return labels, edges

    def forest(self, trees: Sequence[int]) -> Graphs:
        """The unrolled trees, a graph each of class 0: edges point to parents, and only the roots stand for their
        graph."""
        nodes: list[int] = []
        ends: list[tuple[int, int]] = []
        kinds: list[int] = []
        sizes, counts, roots = [], [], []
        for tree in trees:
            labels, edges = self.unrolled(tree)
            start = len(nodes)
            ends += [(start + child, start + parent) for child, parent, _ in edges]
            kinds += [kind for *_, kind in edges]
            roots += [True] + [False] * (len(labels) - 1)
            nodes += labels
            sizes.append(len(labels))
            counts.append(len(edges))
        edge = torch.tensor(ends, dtype=torch.int64).reshape(-1, 2).T.contiguous()
        made = [torch.tensor(values, dtype=torch.int64) for values in (kinds, sizes, counts, [0] * len(sizes))]
        return Graphs(torch.tensor(nodes, dtype=torch.int64), edge, *made, torch.tensor(roots, dtype=torch.bool))


def computation_trees(graphs: Graphs, hops: int, table: Trees) -> list[list[int]]:
    """For each graph the numbers of its nodes' ``hops``-hop computation trees; new ones are added to ``table``."""
    found, labels = [], graphs.nodes.split(graphs.sizes.tolist())
    for own, around in zip(labels, graphs.neighbours(), strict=True):
        names = own.tolist()
        trees = [table.add(label) for label in names]
        for _ in range(hops):
            trees = [
                table.add(label, [(kind, trees[node]) for kind, node in near])
                for label, near in zip(names, around, strict=True)
            ]
        found.append(trees)
    return found


def skew(trees: Sequence[Sequence[int]], share: float = 0.2) -> float:
    """Share of all occurrences that the most frequent ``share`` of the distinct trees has; in (0, 1]."""
    counts = sorted(Counter(tree for graph in trees for tree in graph).values(), reverse=True)
    return sum(counts[: max(1, round(share * len(counts)))]) / sum(counts)
