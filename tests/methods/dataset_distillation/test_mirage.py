"""Mirage, and random trees beside it."""

from __future__ import annotations

import pytest

from kdbench.cache import Cache
from kdbench.errors import UsageError
from kdbench.registry import discover
from kdbench.tracks.dataset_distillation.task import DDTask
from kdbench_methods.dataset_distillation import mirage, random_trees


@pytest.fixture
def task(tmp_path):
    spec = discover().task("dataset_distillation/motifs", "smoke")
    return DDTask(spec, seed=0, method="mirage", folder=tmp_path, cache=Cache())


def test_no_network_is_trained(run):
    found = run("dataset_distillation/mirage", "motifs")
    extra = found.outcome.extra
    assert extra["gradient_steps"] == 0
    assert extra["root_error_gin"] < 1e-5
    assert extra["root_error_gat"] < 1e-5
    assert extra["root_error_gcn"] > 1e-3  # reported, not hidden
    assert extra["skew"] > 0.6
    assert extra["largest_pattern"] > 1
    assert found.outcome.metrics["bytes_share"] <= 0.2
    assert len(found.column("support/3")) == 1


def test_a_set_is_met_as_often_as_it_occurs_or_equally_often(task):
    found = mirage.train(task, mirage.MirageParams())
    equal = mirage.train(task, mirage.MirageParams(weights="equal"))
    assert [(p.label, p.trees) for p in equal.patterns] == [(p.label, p.trees) for p in found.patterns]
    assert {p.frequency for p in equal.patterns} == {1}
    assert len({p.frequency for p in found.patterns}) > 1


def test_closed_sets_are_some_of_all_at_the_same_support(task):
    def patterns(sets):
        found = mirage.train(task, mirage.MirageParams(sets=sets, support=0.6))
        return {
            (p.label, tuple(sorted(found.table.canonical(t) for t in p.trees)), p.frequency) for p in found.patterns
        }

    assert patterns("closed") <= patterns("all")
    assert patterns("closed")


def test_a_support_that_keeps_too_much_says_so(task):
    with pytest.raises(UsageError, match="more than the"):
        mirage.train(task, mirage.MirageParams(support=0.01))


def test_trees_are_as_deep_as_networks_need_or_as_told(task):
    assert mirage.train(task, mirage.MirageParams()).hops == 2
    assert mirage.train(task, mirage.MirageParams(hops=1)).hops == 1


def test_random_trees_fill_the_budget(task, run):
    found = random_trees.train(task, random_trees.RandomTreesParams(size=2))
    assert {len(p.trees) for p in found.patterns} == {2}
    assert {p.frequency for p in found.patterns} == {1}
    assert 0.8 * task.kind.budget < len(found.encode()) <= task.kind.budget
    assert run("dataset_distillation/random_trees", "motifs").outcome.metrics["bytes"] <= task.kind.budget


def test_random_trees_that_are_too_many_are_refused(task):
    with pytest.raises(UsageError, match="smaller sets"):
        random_trees.train(task, random_trees.RandomTreesParams(size=1000))


@pytest.mark.parametrize("slug", ["full", "random"])
def test_floor_and_ceiling_are_those_of_images(run, slug):
    found = run(f"dataset_distillation/{slug}", "motifs").outcome.metrics
    assert found["bytes_share"] == 1 if slug == "full" else found["bytes_share"] <= 0.2
