"""The task of graphs: what may be kept, what is compared with, what is refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from kdbench.errors import ArtifactError, JobError, UsageError
from kdbench.tracks.dataset_distillation.blocks.mining import Miner, transactions_of
from kdbench.tracks.dataset_distillation.blocks.trees import Trees, computation_trees
from kdbench.tracks.dataset_distillation.data.graphs import pack, unpack
from kdbench.tracks.dataset_distillation.distilled.graphset import GraphSet, encode_graphs
from kdbench.tracks.dataset_distillation.distilled.images import ImageSet
from kdbench.tracks.dataset_distillation.distilled.trees import Pattern, TreeSet
from kdbench.tracks.dataset_distillation.evaluate import graphs as scoring
from kdbench.tracks.dataset_distillation.spec import Evaluation


@pytest.fixture
def task(make):
    return make("motifs")


def patterns_of(table, *sets):
    return [Pattern(label, trees, frequency) for label, trees, frequency in sets]


@pytest.fixture
def small():
    """Two classes; the first one has two patterns."""
    table = Trees()
    a, b = table.add(0), table.add(1)
    c = table.add(0, [(0, a), (0, b), (0, b)])
    unused = table.add(3, [(0, c)])
    made = TreeSet(1, table, patterns_of(table, (0, (a, c), 3), (0, (b,), 1), (1, (c,), 7)), [30, 10])
    assert unused == 3
    return made


def test_a_random_part_fills_the_budget_class_by_class(task):
    found = task.kind.random(task, task.generator("subset"))
    size = len(found.encode())
    largest = max(len(encode_graphs(task.kind.split("train").take(torch.tensor([i])))) for i in range(80))
    assert task.kind.budget - largest < size <= task.kind.budget
    counts = torch.bincount(found.graphs.y, minlength=4)
    assert int(counts.max() - counts.min()) <= 1
    other = task.kind.random(task, torch.Generator().manual_seed(5))
    assert unpack(other.graphs) != unpack(found.graphs)


def test_the_budget_is_a_share_of_the_bytes_of_training(task):
    assert task.kind.whole_bytes == len(encode_graphs(task.kind.split("train")))
    assert task.kind.budget == int(0.2 * task.kind.whole_bytes)


def test_a_budget_without_a_graph_of_each_class_says_so(make):
    poor = make("motifs")
    poor.kind.data = poor.kind.data.model_copy(update={"share": 0.01})
    with pytest.raises(JobError, match="fewer than a graph of each class"):
        poor.kind.random(poor, poor.generator("subset"))


def test_sets_of_trees_are_written_and_read(small, task, tmp_path):
    again = TreeSet.decode(small.encode())
    assert again.patterns == small.patterns
    assert (again.hops, again.sizes) == (1, (30, 10))
    assert again.table.children == small.table.children
    assert len(small.table) == 3  # what no pattern needs is left out
    small.save(tmp_path)
    assert TreeSet.load(tmp_path, task).encode() == small.encode()
    assert small.floats(task) == {"data": -(-len(small.encode()) // 4), "labels": 0}


def test_bytes_of_trees_are_those_of_their_numbers(small):
    head, table, patterns = 1 + 1 + 1 + 2, 1 + 3 * 2 + 3, 1 + 3 * 3 + 4
    assert len(small.encode()) == head + table + patterns


def test_patterns_are_drawn_by_class_and_frequency(small):
    chance = small.probabilities()
    np.testing.assert_allclose(chance, [0.75 * 0.75, 0.75 * 0.25, 0.25])
    batch = next(small.batches(4000, np.random.default_rng(0)))
    seen = batch.sizes.numpy() * 10 + batch.y.numpy()  # five nodes, one node, four nodes
    found = [(seen == value).mean() for value in (50, 10, 41)]
    np.testing.assert_allclose(found, chance, atol=0.03)


def test_a_sample_is_the_union_of_its_trees(small):
    found = small.samples([2, 0])
    assert found.y.tolist() == [1, 0]
    assert found.sizes.tolist() == [4, 5]
    assert found.counts.tolist() == [3, 3]
    assert found.nodes[found.roots].tolist() == [0, 0, 0]
    source, target = found.edges
    assert set(found.owners[source].tolist()) == {0, 1}
    assert torch.equal(found.owners[source], found.owners[target])
    assert bool(found.roots[target].all())  # trees of one hop: every edge ends in a root
    assert not bool(found.roots[source].any())


def test_sets_that_do_not_fit_the_task_are_refused(task, small):
    table = Trees()
    trees = [table.add(label) for label in (0, 99)]
    all_classes = [(c, (trees[0],), 1) for c in range(4)]
    task.check(TreeSet(1, table, patterns_of(table, *all_classes), [20] * 4))
    with pytest.raises(ArtifactError, match="knows 2 classes"):
        task.check(small)
    with pytest.raises(ArtifactError, match="every class needs"):
        task.check(TreeSet(1, table, patterns_of(table, *all_classes[:3]), [20] * 4))
    with pytest.raises(ArtifactError, match="node labels"):
        task.check(TreeSet(1, table, patterns_of(table, *all_classes, (0, (trees[1],), 1)), [20] * 4))
    with pytest.raises(ArtifactError, match="bytes"):
        task.check(GraphSet(task.kind.split("train")))
    with pytest.raises(ArtifactError, match="GraphSet or a TreeSet"):
        task.check(ImageSet(torch.zeros(1, 1, 8, 8), torch.zeros(1, dtype=torch.int64)))
    with pytest.raises(ArtifactError, match="edge labels"):
        task.check(GraphSet(pack([([0, 0], [(0, 1, 3)], 0)])))


def test_a_task_of_graphs_has_no_images(task):
    with pytest.raises(JobError, match="no ipc"):
        task.ipc  # noqa: B018
    with pytest.raises(JobError, match="no split"):
        task.kind.split("all")
    with pytest.raises(JobError, match="no teacher"):
        task.teacher()
    with pytest.raises(JobError, match="no committee"):
        task.kind.fit_member(task.student(), torch.Generator(), task.device)


def test_scores_are_the_same_again_and_differ_by_seed(make):
    first, again, other = make("motifs"), make("motifs"), make("motifs", seed=1)
    found = first.kind.random(first, torch.Generator().manual_seed(0))
    for each in (first, again, other):
        each.phase = "evaluate"
    a, b, c = (each.scores(found) for each in (first, again, other))
    assert a.metrics == b.metrics
    assert a.examples["accuracy"].shape == (40,)
    assert a.examples["accuracy"].mean() == pytest.approx(a.metrics["accuracy"])
    assert a.metrics["bytes"] == len(found.encode())
    assert a.metrics["cross"] == pytest.approx((a.metrics["accuracy_gcn"] + a.metrics["accuracy_gat"]) / 2)
    assert a.metrics["auc"] != c.metrics["auc"]


def test_networks_learn_to_tell_graphs_apart(make):
    """Rings from stars, in a small part of the steps of a real task."""
    task = make("motifs", evaluation=Evaluation(updates=300, batch_size=14, lr=1e-2, runs=1))
    rings = [([0] * n, [(i, (i + 1) % n, 0) for i in range(n)], 1) for n in range(4, 11)]
    stars = [([0] * n, [(0, i, 0) for i in range(1, n)], 0) for n in range(4, 11)]
    graphs = pack(rings + stars)
    network = scoring.learn(task, GraphSet(graphs), "gin(2,8)", 0)
    assert scoring.accuracy(network, graphs) == 1
    assert scoring.area(scoring.probabilities(network, graphs)[:, :2], graphs.y) == pytest.approx(1)


def test_the_area_is_that_of_the_definition():
    p = torch.tensor([[0.9, 0.1], [0.6, 0.4], [0.7, 0.3], [0.2, 0.8]])
    assert scoring.area(p, torch.tensor([0, 0, 1, 1])) == pytest.approx(0.75)
    assert np.isnan(scoring.area(p, torch.tensor([1, 1, 1, 1])))


def miner(task, hops=2, closed=False):
    train, table = task.kind.split("train"), Trees()
    found = transactions_of(computation_trees(train, hops, table), train.y.tolist(), 4)
    return Miner(hops, table, found, closed=closed)


@pytest.mark.parametrize("closed", [False, True])
def test_supports_are_the_least_that_fit(task, closed):
    mining = miner(task, closed=closed)
    found, supports = mining.tuned(task.kind.budget)
    assert len(found.encode()) <= task.kind.budget
    for label, support in enumerate(supports):
        assert all(p.frequency >= support for p in found.patterns if p.label == label)
        if support > 1:
            lower = [support - 1 if c == label else other for c, other in enumerate(supports)]
            assert label < 3 or mining.summary(lower, task.kind.budget) is None
    for pattern in found.patterns:  # frequencies are counts of graphs of the class
        names = [found.table.canonical(tree) for tree in pattern.trees]
        own = [{mining.table.canonical(t) for t in graph} for graph in mining.transactions[pattern.label]]
        assert pattern.frequency == sum(set(names) <= graph for graph in own)


def test_a_budget_without_trees_says_which_classes_have_none(task):
    with pytest.raises(UsageError, match="classes 0, 1, 2, 3"):
        miner(task).tuned(12)
