"""Computation trees: equal numbers for isomorphic trees alone, and embeddings of roots that are those of nodes."""

from __future__ import annotations

import networkx as nx
import numpy as np
import pytest
import torch

from kdbench.tracks.dataset_distillation.blocks.trees import Trees, computation_trees
from kdbench.tracks.dataset_distillation.data import motifs
from kdbench.tracks.dataset_distillation.data.graphs import pack, unpack
from kdbench.tracks.dataset_distillation.evaluate.graphs import root_error
from kdbench.tracks.dataset_distillation.networks.graphs import (
    build_graph_net,
    layers_of,
    scatter_softmax,
    scatter_sum,
)


def random_graphs(count, seed, kinds=2, labels=3):
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(count):
        graph = nx.gnp_random_graph(int(rng.integers(3, 8)), 0.4, seed=int(rng.integers(2**31)))
        nodes = rng.integers(0, labels, len(graph)).tolist()
        found.append((nodes, sorted((*sorted(edge), int(rng.integers(kinds))) for edge in graph.edges), 0))
    return found


def relabelled(plain, rng):
    nodes, pairs, label = plain
    place = rng.permutation(len(nodes)).tolist()
    moved = [0] * len(nodes)
    for node, name in enumerate(nodes):
        moved[place[node]] = name
    order = rng.permutation(len(pairs)).tolist()
    return (moved, [(place[pairs[i][1]], place[pairs[i][0]], pairs[i][2]) for i in order], label), place


def tree_of(table, number):
    labels, edges = table.unrolled(number)
    graph = nx.DiGraph()
    graph.add_nodes_from((i, {"label": label}) for i, label in enumerate(labels))
    graph.add_edges_from((parent, child, {"kind": kind}) for child, parent, kind in edges)
    return graph


@pytest.mark.parametrize("hops", [0, 1, 2, 3])
def test_trees_do_not_depend_on_the_numbers_of_nodes(hops):
    rng, table = np.random.default_rng(0), Trees()
    for plain in random_graphs(20, 1):
        other, place = relabelled(plain, rng)
        first, second = computation_trees(pack([plain, other]), hops, table)
        assert first == [second[place[node]] for node in range(len(first))]


def test_equal_numbers_mean_isomorphic_trees_and_the_other_way_round():
    table = Trees()
    numbers = sorted({tree for own in computation_trees(pack(random_graphs(12, 2)), 2, table) for tree in own})[:24]
    same = {"node_match": lambda a, b: a == b, "edge_match": lambda a, b: a == b}
    for a in numbers:
        for b in numbers:
            isomorphic = nx.is_isomorphic(tree_of(table, a), tree_of(table, b), **same)
            assert isomorphic == (a == b) == (table.canonical(a) == table.canonical(b))


def test_strings_of_another_table_are_the_same():
    first, second = Trees(), Trees()
    graphs = random_graphs(10, 3)
    there = computation_trees(pack(graphs), 2, first)
    back = computation_trees(pack(graphs[::-1]), 2, second)[::-1]
    for own, others in zip(there, back, strict=True):
        assert [first.canonical(tree) for tree in own] == [second.canonical(tree) for tree in others]


def test_the_way_back_is_part_of_a_tree():
    table = Trees()
    ((left, right),) = computation_trees(pack([([5, 6], [(0, 1, 0)], 0)]), 2, table)
    assert table.canonical(left) == "5(0:6(0:5()))"
    assert table.canonical(right) == "6(0:5(0:6()))"
    assert table.nodes(left) == 3


def test_labels_of_edges_tell_trees_apart():
    table = Trees()
    (a, *_), (b, *_) = computation_trees(pack([([0, 0], [(0, 1, 0)], 0), ([0, 0], [(0, 1, 1)], 0)]), 1, table)
    assert a != b


def test_the_closure_has_all_subtrees_and_no_others():
    table = Trees()
    leaf, other = table.add(0), table.add(1)
    inner = table.add(2, [(0, leaf), (0, leaf)])
    root = table.add(3, [(0, inner)])
    assert table.closure([root]) == [leaf, inner, root]
    assert other not in table.closure([root])
    assert table.nodes(root) == 4


@pytest.mark.parametrize("family", ["gin", "gat"])
@pytest.mark.parametrize("kinds", [1, 2])
def test_roots_have_the_embeddings_of_their_nodes(family, kinds):
    graphs, table = pack(random_graphs(10, 4, kinds)), Trees()
    forest = table.forest([tree for own in computation_trees(graphs, 3, table) for tree in own])
    assert root_error(f"{family}(3,8)", graphs, forest, labels=3, kinds=2, seed=0) < 1e-12


def test_trees_that_are_too_low_do_not_suffice():
    graphs, table = pack(random_graphs(10, 4)), Trees()
    forest = table.forest([tree for own in computation_trees(graphs, 2, table) for tree in own])
    assert root_error("gin(3,8)", graphs, forest, labels=3, kinds=2, seed=0) > 1e-3


def test_degrees_are_lost_at_the_leaves_alone():
    """GCN divides by degrees: its roots differ, but not in graphs without edges, and the last layer alone is
    affected."""
    graphs, table = pack(random_graphs(10, 4)), Trees()
    deep = table.forest([tree for own in computation_trees(graphs, 3, table) for tree in own])
    assert root_error("gcn(3,8)", graphs, deep, labels=3, kinds=2, seed=0) > 1e-3
    alone = pack([([0], [], 0), ([1], [], 0)])
    forest = table.forest([tree for own in computation_trees(alone, 3, table) for tree in own])
    assert root_error("gcn(3,8)", alone, forest, labels=3, kinds=2, seed=0) < 1e-12
    deeper = table.forest([tree for own in computation_trees(graphs, 4, table) for tree in own])
    # with one hop more, all nodes that count have their neighbours but not their parents' degree: still not the same
    assert root_error("gcn(3,8)", graphs, deeper, labels=3, kinds=2, seed=0) < root_error(
        "gcn(3,8)", graphs, deep, labels=3, kinds=2, seed=0
    )


def test_sums_and_softmax_by_index():
    values, index = torch.tensor([[1.0], [2.0], [4.0]]), torch.tensor([1, 0, 1])
    assert scatter_sum(values, index, 3).flatten().tolist() == [2, 5, 0]
    found = scatter_softmax(torch.tensor([[0.0, 800.0], [1.0, 5.0], [1.0, 800.0]]), index, 3)
    torch.testing.assert_close(found[[0, 2]], torch.tensor([[0.0, 800.0], [1.0, 800.0]]).softmax(0))
    assert found[1].tolist() == [1, 1]


@pytest.mark.parametrize("family", ["gin", "gcn", "gat"])
@pytest.mark.parametrize("pool", ["sum", "mean"])
def test_networks_do_not_depend_on_the_numbers_of_nodes(family, pool):
    torch.manual_seed(0)
    network = build_graph_net(f"{family}(2,8)", labels=3, kinds=2, classes=4, pool=pool, dropout=0.0).double()
    rng, graphs = np.random.default_rng(0), random_graphs(8, 5)
    moved = [relabelled(plain, rng)[0] for plain in graphs]
    torch.testing.assert_close(network(pack(graphs)), network(pack(moved)))
    one_by_one = torch.cat([network(pack([plain])) for plain in graphs])
    torch.testing.assert_close(network(pack(graphs)), one_by_one)


def test_roots_alone_are_pooled():
    torch.manual_seed(0)
    network = build_graph_net("gin(2,8)", labels=5, kinds=1, classes=4, pool="sum", dropout=0.0).double()
    graphs, table = motifs.graphs("train", 6, 0, 0.05), Trees()
    trees = computation_trees(graphs, 2, table)
    forest = table.forest([tree for own in trees for tree in own])
    sizes = torch.tensor([len(own) for own in trees])
    torch.testing.assert_close(network(forest.merged(sizes, graphs.y)), network(graphs))
    with pytest.raises(ValueError, match="no undirected"):
        unpack(forest)


def test_names_of_other_networks_are_refused():
    assert layers_of("gat(4,16)") == 4
    with pytest.raises(ValueError, match="no network for graphs"):
        layers_of("mini_resnet(8)")
