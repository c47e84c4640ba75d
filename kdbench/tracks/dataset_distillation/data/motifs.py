"""Graphs whose class is which motifs hang on them: a ring or a house, and a star or a path.

A base graph (a path whose nodes get a leaf now and then) carries one ring motif and one tree motif, each tied to a
random node by one edge. Ring and house have five nodes each, and so have star and path, so that numbers of nodes say
nothing about the class. The label of a node is its degree, as it is in collections of graphs without labels of their
own: networks that average over neighbours could not tell nodes apart that all have one label. A few labels are drawn
at random.
"""

from __future__ import annotations

import networkx as nx
import numpy as np

from kdbench.tracks.dataset_distillation.data.graphs import Graphs, pack

RINGS = {"cycle": nx.cycle_graph(5), "house": nx.house_graph()}
TREES = {"star": nx.star_graph(4), "path": nx.path_graph(5)}
CLASSES = [(ring, tree) for ring in RINGS for tree in TREES]
"""Motifs of each class."""
LABELS = 5
"""Node labels: degrees from 1 to 5, larger ones being 5."""
LEAF = 0.1
"""Probability that a node of the base has a leaf."""
SHORTEST, LONGEST = 2, 8
"""Nodes of the base's path."""


def one(label: int, noise: float, rng: np.random.Generator) -> nx.Graph:
    """A graph of a class with ``label`` at each node, a share ``noise`` of them at random; 12 to 26 nodes."""
    graph = nx.path_graph(int(rng.integers(SHORTEST, LONGEST + 1)))
    for node in list(graph):
        if rng.random() < LEAF:
            graph.add_edge(node, len(graph))
    base = len(graph)
    for motif in (RINGS[CLASSES[label][0]], TREES[CLASSES[label][1]]):
        start = len(graph)
        graph = nx.disjoint_union(graph, motif)
        graph.add_edge(int(rng.integers(base)), start + int(rng.integers(len(motif))))
    for node in graph:
        drawn = rng.random() < noise
        graph.nodes[node]["label"] = int(rng.integers(LABELS)) if drawn else min(graph.degree(node), LABELS) - 1
    return graph


def graphs(split: str, count: int, seed: int, noise: float) -> Graphs:
    """``count`` graphs, as many of each class as can be; the same for the same split, seed and noise."""
    rng = np.random.default_rng([seed, *split.encode()])
    classes = rng.permutation(np.arange(count) % len(CLASSES))
    found = []
    for label in classes.tolist():
        graph = one(label, noise, rng)
        order = rng.permutation(len(graph))  # numbers of nodes say nothing
        place = np.argsort(order).tolist()
        labels = [graph.nodes[int(node)]["label"] for node in order]
        found.append((labels, [(place[u], place[v], 0) for u, v in graph.edges], label))
    return pack(found)
