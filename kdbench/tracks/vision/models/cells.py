"""Networks of stacked cells, and the supernet that mixes all of their operations (DARTS: Liu et al., ICLR 2019).

A cell has two inputs, the outputs of the two cells before it, and some nodes. Each node sums edges from inputs and
earlier nodes; the output joins all nodes. Normal cells keep the shape, reduction cells halve it and double channels. An
edge of the supernet is a weighted sum of all operations; a derived network has two edges per node with one operation
each. Operations are those of NAS-Bench-201.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from kdbench.tracks.vision.models.base import Classifier, Taps

OPS = ("none", "skip", "conv1x1", "conv3x3", "avgpool3")
"""Operations of an edge; ``none`` is the absence of the edge."""
KINDS_OF_CELLS = ("normal", "reduce")
STEM = 3
"""Channels of the stem as a multiple of those of the first cell."""

Gene = tuple[str, int]
"""Operation and source (0 and 1: the inputs, then the nodes); genes come in order of their nodes, two per node."""
Genotype = Mapping[str, Sequence[Gene]]
"""Genes of the normal and the reduction cells."""
Edge = tuple[int, int, tuple[str, ...]]
"""Node (from 0), source and operations."""


def all_edges(nodes: int) -> list[tuple[int, int]]:
    """(node, source) of every edge of a cell, in the order in which mixing weights have them."""
    return [(node, source) for node in range(nodes) for source in range(2 + node)]


def derive(weights: Tensor, nodes: int) -> list[Gene]:
    """The strongest operation but ``none`` of the two strongest edges of each node; weights (edges, len(OPS)).

    An edge is as strong as its strongest operation. The rule of DARTS, section 2.4.
    """
    strength, op = weights.detach()[:, 1:].max(1)
    genes: list[Gene] = []
    for node in range(nodes):
        edges = [k for k, (target, _) in enumerate(all_edges(nodes)) if target == node]
        kept = sorted(sorted(edges, key=lambda k: -float(strength[k]))[:2])
        genes += [(OPS[1 + int(op[k])], all_edges(nodes)[k][1]) for k in kept]
    return genes


def one_hot(genes: Sequence[Gene], nodes: int) -> Tensor:
    """The mixing weights (edges, len(OPS)) with which a supernet computes what the genes say: 0 and 1."""
    weights = torch.zeros(len(all_edges(nodes)), len(OPS))
    for i, (op, source) in enumerate(genes):
        weights[all_edges(nodes).index((i // 2, source)), OPS.index(op)] = 1
    return weights


def reductions(layers: int) -> set[int]:
    """Positions of the reduction cells: one and two thirds of the depth as in DARTS; the last of one or two cells."""
    return {layers // 3, 2 * layers // 3} if layers >= 3 else {layers - 1}


class FactorizedReduce(nn.Module):
    """Half the height and width: two 1x1 convolutions with stride 2, the second shifted by a pixel, side by side."""

    def __init__(self, c_in: int, c_out: int, affine: bool) -> None:
        super().__init__()
        self.even = nn.Conv2d(c_in, c_out // 2, 1, 2, bias=False)
        self.odd = nn.Conv2d(c_in, c_out - c_out // 2, 1, 2, bias=False)
        self.norm = nn.BatchNorm2d(c_out, affine=affine)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(x)
        result: Tensor = self.norm(torch.cat([self.even(x), self.odd(x[:, :, 1:, 1:])], 1))
        return result


def _conv(c_in: int, c_out: int, kernel: int, stride: int, affine: bool) -> nn.Sequential:
    conv = nn.Conv2d(c_in, c_out, kernel, stride, kernel // 2, bias=False)
    return nn.Sequential(nn.ReLU(), conv, nn.BatchNorm2d(c_out, affine=affine))


def make_op(name: str, c: int, stride: int, affine: bool) -> nn.Module:
    """An operation on (B, c, H, W). Raises ``ValueError`` for an unknown name, and for ``none``, which is no module."""
    if name == "skip":
        return nn.Identity() if stride == 1 else FactorizedReduce(c, c, affine)
    if name in ("conv1x1", "conv3x3"):
        return _conv(c, c, int(name[-1]), stride, affine)
    if name == "avgpool3":
        pool = nn.AvgPool2d(3, stride, 1, count_include_pad=False)
        return nn.Sequential(pool, nn.BatchNorm2d(c, affine=affine))
    raise ValueError(f"{name!r} is no operation; expected one of {', '.join(OPS[1:])}")


class Cell(nn.Module):
    """Nodes over two inputs of ``before`` channels each, all with ``c`` channels."""

    def __init__(
        self, edges: Sequence[Edge], before: tuple[int, int], c: int, *, reduce: bool, halved: bool, affine: bool
    ) -> None:
        """``halved``: the second input is half as large as the first, because a reduction cell is between them."""
        super().__init__()
        self.edges = [(node, source) for node, source, _ in edges]
        self.nodes = 1 + max(node for node, _ in self.edges)
        first = FactorizedReduce(before[0], c, affine) if halved else _conv(before[0], c, 1, 1, affine)
        self.inputs = nn.ModuleList([first, _conv(before[1], c, 1, 1, affine)])
        self.ops = nn.ModuleList(
            nn.ModuleList(make_op(name, c, 2 if reduce and source < 2 else 1, affine) for name in names)
            for _, source, names in edges
        )

    def forward(self, a: Tensor, b: Tensor, weights: Tensor | None) -> Tensor:
        """(B, nodes * c, H, W); ``weights`` (edges, len(OPS)), or None where every edge has one operation."""
        states = [self.inputs[0](a), self.inputs[1](b)]
        for node in range(self.nodes):
            parts = []
            for k, (target, source) in enumerate(self.edges):
                if target == node:
                    results = [op(states[source]) for op in self.ops[k]]
                    # the first column is the weight of `none`, whose result is 0
                    parts += (
                        results if weights is None else [w * r for w, r in zip(weights[k, 1:], results, strict=True)]
                    )
            states.append(sum(parts[1:], parts[0]))
        return torch.cat(states[2:], 1)


class Cells(Classifier):
    """Stem 3x3 with stride 2, a stack of cells, global average pool, linear."""

    def __init__(
        self,
        edges: Mapping[str, Sequence[Edge]],
        channels: int,
        layers: int,
        *,
        affine: bool,
        num_classes: int,
        size: int,
    ) -> None:
        if size % 2 ** (1 + len(reductions(layers))):
            raise ValueError(f"images of {size} pixels cannot be halved {1 + len(reductions(layers))} times")
        super().__init__()
        self.num_classes = num_classes
        c, before = channels, (STEM * channels, STEM * channels)
        self.stem = nn.Sequential(nn.Conv2d(3, before[0], 3, 2, 1, bias=False), nn.BatchNorm2d(before[0]))
        self.cells, self.reduce, halved = nn.ModuleList(), [], False
        for layer in range(layers):
            reduce = layer in reductions(layers)
            c = 2 * c if reduce else c
            cell = Cell(edges[KINDS_OF_CELLS[reduce]], before, c, reduce=reduce, halved=halved, affine=affine)
            self.cells.append(cell)
            self.reduce.append(reduce)
            before, halved = (before[1], cell.nodes * c), reduce
        self.fc = nn.Linear(before[1], num_classes)

    def head(self) -> nn.Linear:
        return self.fc

    def mixed_taps(self, x: Tensor, weights: tuple[Tensor, Tensor] | tuple[None, None]) -> Taps:
        """``weights`` of the edges of the normal and of the reduction cells."""
        a = b = self.stem(x)
        stages = []
        for cell, reduce in zip(self.cells, self.reduce, strict=True):
            a, b = b, cell(a, b, weights[reduce])
            stages.append(b)
        penult = b.mean(dim=(2, 3))
        return Taps(stages, penult, self.fc(penult))


class CellNet(Cells):
    """A derived network: two edges per node, each with the operation that the genotype names."""

    kind = "cells"

    def __init__(self, channels: int, layers: int, genotype: Genotype, *, num_classes: int, size: int = 16) -> None:
        edges = {
            kind: [(i // 2, source, (op,)) for i, (op, source) in enumerate(genotype[kind])] for kind in KINDS_OF_CELLS
        }
        super().__init__(edges, channels, layers, affine=True, num_classes=num_classes, size=size)
        self.config: dict[str, Any] = {
            "channels": channels,
            "layers": layers,
            "genotype": {kind: [list(gene) for gene in genotype[kind]] for kind in KINDS_OF_CELLS},
            "num_classes": num_classes,
            "size": size,
        }

    def taps(self, x: Tensor) -> Taps:
        return self.mixed_taps(x, (None, None))


class Supernet(Cells):
    """All operations on all edges; normalisation has no scale of its own, or it would undo the mixing weights."""

    def __init__(self, channels: int, layers: int, nodes: int, *, num_classes: int, size: int = 16) -> None:
        edges = [(node, source, OPS[1:]) for node, source in all_edges(nodes)]
        both = dict.fromkeys(KINDS_OF_CELLS, edges)
        super().__init__(both, channels, layers, affine=False, num_classes=num_classes, size=size)
        self.nodes = nodes

    def taps(self, x: Tensor) -> Taps:
        """With equal weights of all operations."""
        uniform = torch.full((len(all_edges(self.nodes)), len(OPS)), 1 / len(OPS), device=x.device)
        return self.mixed_taps(x, (uniform, uniform))

    def mix(self, x: Tensor, weights: tuple[Tensor, Tensor]) -> Tensor:
        """Logits (B, C) with mixing weights (edges, len(OPS)) of the normal and of the reduction cells."""
        return self.mixed_taps(x, weights).logits
