"""Graphs: packing, bytes, generated and foreign ones."""

from __future__ import annotations

import json

import networkx as nx
import numpy as np
import pytest
import torch
from pydantic import ValidationError

from kdbench.cache import Cache
from kdbench.errors import ArtifactError, UsageError
from kdbench.spec import digest
from kdbench.tracks.dataset_distillation.blocks.trees import Trees, computation_trees, skew
from kdbench.tracks.dataset_distillation.data import graph_sets, motifs, numbers
from kdbench.tracks.dataset_distillation.data.graphs import Graphs, pack, unpack
from kdbench.tracks.dataset_distillation.data.specs import GraphsData
from kdbench.tracks.dataset_distillation.distilled.graphset import decode_graphs, encode_graphs

PLAIN = [
    ([0, 1, 2], [(0, 1, 0), (1, 2, 1)], 1),
    ([3], [], 0),
    ([4, 4, 4, 4], [(0, 1, 0), (0, 3, 1), (1, 2, 0)], 1),
]


def as_networkx(nodes, pairs):
    graph = nx.Graph()
    graph.add_nodes_from((i, {"label": label}) for i, label in enumerate(nodes))
    graph.add_edges_from((u, v) for u, v, _ in pairs)
    return graph


def same(a: Graphs, b: Graphs) -> bool:
    return unpack(a) == unpack(b)


def test_graphs_are_packed_and_unpacked():
    found = pack(PLAIN)
    assert len(found) == 3
    assert found.owners.tolist() == [0, 0, 0, 1, 2, 2, 2, 2]
    assert found.counts.tolist() == [4, 0, 6]
    assert unpack(found) == PLAIN


@pytest.mark.parametrize("rows", [[2, 0], [1], [0, 0, 2, 1], []])
def test_graphs_are_taken_by_position(rows):
    assert unpack(pack(PLAIN).take(torch.tensor(rows, dtype=torch.int64))) == [PLAIN[row] for row in rows]


def test_unions_keep_nodes_and_edges():
    found = pack(PLAIN).merged(torch.tensor([2, 1]), torch.tensor([5, 6]))
    ((nodes, pairs, label), last) = unpack(found)
    assert (nodes, pairs, label) == ([0, 1, 2, 3], [(0, 1, 0), (1, 2, 1)], 5)
    assert last[1] == PLAIN[2][1]
    assert last[2] == 6


@pytest.mark.parametrize("values", [[], [0], [127, 128, 16383, 16384, 10**9]])
def test_numbers_are_written_and_read(values):
    data = numbers.write(values)
    assert list(numbers.read(data)) == values
    assert len(data) == sum(max(1, -(-value.bit_length() // 7)) for value in values)


def test_numbers_that_are_cut_off_are_found():
    with pytest.raises(ArtifactError, match="middle"):
        list(numbers.read(numbers.write([300])[:1]))
    with pytest.raises(ValueError, match="from 0 on"):
        numbers.write([-1])


def test_bytes_of_graphs_are_those_of_their_numbers():
    found = pack(PLAIN)
    data = encode_graphs(found)
    assert same(decode_graphs(data), found)
    assert len(data) == 2 + 3 * 3 + 8 + 3 * 5  # head, three numbers a graph, nodes, three numbers an edge
    without = pack([(nodes, [(u, v, 0) for u, v, _ in pairs], label) for nodes, pairs, label in PLAIN])
    assert len(encode_graphs(without)) == len(data) - 5  # one kind of edges is not written


def test_motifs_are_what_their_class_says():
    graphs = unpack(motifs.graphs("train", 40, 0, 0.05))
    assert np.bincount([label for *_, label in graphs]).tolist() == [10] * 4
    for nodes, pairs, label in graphs:
        assert 12 <= len(nodes) <= 26
        graph = as_networkx(nodes, pairs)
        assert nx.is_connected(graph)
        ring, tree = motifs.CLASSES[label]
        cycles = sorted(map(len, nx.minimum_cycle_basis(graph)))
        assert cycles == ([5] if ring == "cycle" else [3, 4])
        has_star = max(dict(graph.degree).values()) >= 4  # a centre of four leaves; a base node has two neighbours
        assert has_star or tree == "path"


def test_motifs_are_the_same_for_the_same_seed_alone():
    assert same(motifs.graphs("train", 12, 3, 0.05), motifs.graphs("train", 12, 3, 0.05))
    assert not same(motifs.graphs("train", 12, 3, 0.05), motifs.graphs("train", 12, 4, 0.05))
    assert not same(motifs.graphs("train", 12, 3, 0.05), motifs.graphs("test", 12, 3, 0.05))


@pytest.mark.parametrize("noise", [0.0, 0.25])
def test_labels_are_degrees_but_for_noise(noise):
    drawn = []
    for nodes, pairs, _ in unpack(motifs.graphs("train", 200, 0, noise)):
        degrees = dict(as_networkx(nodes, pairs).degree)
        drawn += [label != min(degrees[node], 5) - 1 for node, label in enumerate(nodes)]
    share = noise * (1 - 1 / motifs.LABELS)  # a label at random is right now and then
    assert np.mean(drawn) == pytest.approx(share, abs=3 * (share / len(drawn)) ** 0.5)


def test_few_trees_make_up_most_occurrences():
    graphs = motifs.graphs("train", 300, 0, 0.05)
    trees = computation_trees(graphs, 3, Trees())
    assert skew(trees) > 0.6
    assert skew([[1, 2, 3, 4, 5]], 0.2) == pytest.approx(0.2)
    assert skew([[1, 1, 1, 1], [2]], 0.5) == pytest.approx(0.8)


def tu_folder(folder, edges, owner, classes, nodes=None):
    folder.mkdir()
    write = lambda name, rows: (folder / f"{folder.name}_{name}.txt").write_text("\n".join(rows) + "\n")  # noqa: E731
    write("A", [f"{u}, {v}" for u, v in edges])
    write("graph_indicator", map(str, owner))
    write("graph_labels", map(str, classes))
    if nodes is not None:
        write("node_labels", map(str, nodes))
    return folder


def test_a_folder_of_text_files_is_read(tmp_path):
    folder = tu_folder(
        tmp_path / "X",
        [(1, 2), (2, 1), (2, 3), (3, 2), (4, 5), (5, 4), (5, 5)],
        [1, 1, 1, 2, 2],
        [-1, 1],
        [7, 9, 7, 9, 7],
    )
    assert unpack(graph_sets.folder_graphs(folder)) == [
        ([0, 1, 0], [(0, 1, 0), (1, 2, 0)], 0),
        ([1, 0], [(0, 1, 0)], 1),
    ]


@pytest.mark.parametrize(
    ("edges", "classes", "what"),
    [([(1, 3)], [0, 1], "two graphs"), ([(1, 2)], [0, 1, 1], "as many rows"), ([(1, 9)], [0, 1], "two graphs")],
)
def test_a_folder_that_does_not_fit_is_refused(tmp_path, edges, classes, what):
    folder = tu_folder(tmp_path / "X", edges, [1, 1, 2, 2], classes)
    with pytest.raises(UsageError, match=what):
        graph_sets.folder_graphs(folder)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UsageError, match=r"NCI_A\.txt"):
        graph_sets.folder_graphs(tmp_path / "NCI")


def many(tmp_path, count=30):
    rows = []
    for k in range(count):
        ends = [[0, 1, 1, 2], [1, 0, 2, 1]]
        features = [[1, 0], [0, 1], [1, 0]] if k % 2 else [[1, 0]] * 3
        rows.append({"edge_index": ends, "num_nodes": 3, "y": [float(k % 2)], "node_feat": features})
    folder = tmp_path / "molecules"
    folder.mkdir()
    (folder / "train.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder


def test_a_data_set_of_the_hub_is_read_and_split(tmp_path):
    spec = GraphsData(source="hf", path=str(many(tmp_path)), held=0.2)
    found = graph_sets.load(spec, Cache(tmp_path / "cache"))
    assert [len(found.splits[name]) for name in graph_sets.SPLITS] == [18, 6, 6]
    assert (found.classes, found.labels, found.kinds) == (2, 2, 1)
    assert torch.bincount(found.splits["test"].y).tolist() == [3, 3]
    for nodes, pairs, label in unpack(found.splits["train"]):
        assert pairs == [(0, 1, 0), (1, 2, 0)]
        assert nodes == ([1, 0, 1] if label else [1, 1, 1])


def test_columns_that_are_missing_are_named(tmp_path):
    folder = tmp_path / "x"
    folder.mkdir()
    (folder / "train.jsonl").write_text(json.dumps({"edges": [[0], [0]], "y": 0}))
    with pytest.raises(UsageError, match="edge_index, num_nodes"):
        graph_sets.hub_graphs(str(folder), "main")


def test_content_that_is_not_the_pinned_one_is_refused(tmp_path):
    spec = GraphsData(train=8, val=4, test=4)
    cache = Cache(tmp_path)
    content = graph_sets.load(spec, cache).digest
    pinned = spec.model_copy(update={"digest": f"{digest(spec.recipe())}:{content}"})
    assert graph_sets.load(pinned, cache).digest == content
    with pytest.raises(UsageError, match="the task pins"):
        graph_sets.load(spec.model_copy(update={"digest": f"{digest(spec.recipe())}:{'0' * 16}"}), cache)
    other = spec.model_copy(update={"digest": f"{'1' * 16}:{'0' * 16}"})  # a pin of other data
    assert graph_sets.load(other, cache).digest == content


@pytest.mark.parametrize("wrong", [{"source": "folder"}, {"source": "hf"}, {"train": None}, {"digest": "abc"}])
def test_incomplete_data_are_refused(wrong):
    with pytest.raises(ValidationError):
        GraphsData(**{"train": 8, "val": 4, "test": 4, **wrong})
