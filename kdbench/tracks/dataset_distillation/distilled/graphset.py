"""Real graphs that stand for all: what a random part of the training set is."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import torch

from kdbench.tracks.dataset_distillation.data import numbers
from kdbench.tracks.dataset_distillation.data.graphs import Graphs, Plain, pack, unpack
from kdbench.tracks.dataset_distillation.distilled.base import Distilled

if TYPE_CHECKING:
    from kdbench.tracks.dataset_distillation.task import DDTask

FILE = "graphs.bin"


class Learnable(Distilled):
    """A distilled set that networks for graphs learn from; its size is counted in the bytes that it is written as."""

    @abstractmethod
    def encode(self) -> bytes:
        """The whole set."""

    @abstractmethod
    def batches(self, size: int, rng: np.random.Generator) -> Iterator[Graphs]:
        """Batches without end, on the CPU."""

    def floats(self, task: DDTask) -> Mapping[str, int]:
        """Bytes as numbers of four bytes; classes are among them."""
        return {"data": -(-len(self.encode()) // 4), "labels": 0}

    def save(self, folder: Path) -> None:
        (folder / FILE).write_bytes(self.encode())


def shuffled(graphs: Graphs, size: int, rng: np.random.Generator) -> Iterator[Graphs]:
    """Epochs of graphs in random order; the last batch of an epoch may be smaller."""
    while True:
        for rows in torch.from_numpy(rng.permutation(len(graphs))).split(size):
            yield graphs.take(rows)


def encode_graphs(graphs: Graphs) -> bytes:
    """Class, numbers of nodes and edges, node labels, and both ends and the label of each edge, graph after graph.

    Edges are written once; their labels are left out where there is one alone.
    """
    plain = unpack(graphs)
    several = any(kind for _, pairs, _ in plain for *_, kind in pairs)
    out = [len(plain), int(several)]
    for nodes, pairs, label in plain:
        out += [label, len(nodes), len(pairs), *nodes]
        for u, v, kind in pairs:
            out += [u, v, kind] if several else [u, v]
    return numbers.write(out)


def decode_graphs(data: bytes) -> Graphs:
    """The graphs again; edges are sorted."""
    found = numbers.read(data)
    count, several = next(found), next(found)
    plain: list[Plain] = []
    for _ in range(count):
        label, nodes, pairs = next(found), next(found), next(found)
        labels = [next(found) for _ in range(nodes)]
        edges = [(next(found), next(found), next(found) if several else 0) for _ in range(pairs)]
        plain.append((labels, edges, label))
    return pack(plain)


class GraphSet(Learnable):
    """Some real graphs with their classes."""

    kind: ClassVar[str] = "graphs"

    def __init__(self, graphs: Graphs) -> None:
        self.graphs = graphs

    def encode(self) -> bytes:
        return encode_graphs(self.graphs)

    def batches(self, size: int, rng: np.random.Generator) -> Iterator[Graphs]:
        return shuffled(self.graphs, size, rng)

    @classmethod
    def load(cls, folder: Path, task: DDTask) -> GraphSet:
        return cls(decode_graphs((folder / FILE).read_bytes()))
