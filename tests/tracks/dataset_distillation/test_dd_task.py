"""What methods receive, what they may return, and how it is scored."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch
from pydantic import ValidationError

from kdbench.errors import ArtifactError, JobError, TestDataError
from kdbench.registry import discover
from kdbench.spec import Metric
from kdbench.tracks.dataset_distillation.blocks.labelling import Labelling
from kdbench.tracks.dataset_distillation.blocks.trainer import epochs_of, train_network
from kdbench.tracks.dataset_distillation.distilled.base import Distilled
from kdbench.tracks.dataset_distillation.distilled.images import ImageSet, expansion
from kdbench.tracks.dataset_distillation.evaluate.images import control, references
from kdbench.tracks.dataset_distillation.evaluate.ranking import label_robust_score
from kdbench.tracks.dataset_distillation.spec import Gate


def scored(task, model):
    task.check(model)
    task.phase = "evaluate"
    return task.scores(model)


def test_test_data_are_out_of_reach(make):
    task = make()
    with pytest.raises(TestDataError):
        task.split("test")
    with pytest.raises(TestDataError):
        task.score(task.kind.random(task, task.generator("s")))


def test_students_are_the_same_for_all_methods(make):
    one, other = make(method="a").student(), make(method="b").student()
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))
    assert not torch.equal(next(one.parameters()), next(make(seed=1).student().parameters()))


def test_the_committee_is_frozen_metered_and_found_again(make):
    task = make()
    networks = task.committee()
    assert len(networks) == 2
    assert networks[0] is task.teacher()
    assert not any(p.requires_grad for network in networks for p in network.parameters())
    networks[1](torch.zeros(3, *task.shape))
    assert task.budget.spent["teacher_queries"] == 3
    again = make().committee()
    assert all(torch.equal(a, b) for a, b in zip(networks[1].parameters(), again[1].parameters(), strict=True))
    assert task.changed_teachers() == []


def test_a_random_subset_is_scored_and_costs_what_it_keeps(make):
    task = make()
    found = scored(task, task.kind.random(task, task.generator("s")))
    metrics = found.metrics
    assert set(metrics) == {metric.name for metric in task.spec.all_metrics()}
    assert metrics["accuracy"] == metrics["hard"], "its labels are classes"
    assert metrics["data_floats"] == 2 * 10 * 64
    assert metrics["label_floats"] == 0
    assert metrics["label_value"] == pytest.approx(0)
    assert metrics["data_value"] == pytest.approx(metrics["accuracy"] - metrics["control"])
    known = references(task)
    assert metrics["lrs"] == pytest.approx(
        label_robust_score(known["whole"], metrics["hard"], metrics["accuracy"], metrics["control"])
    )
    assert found.examples["accuracy"].mean() == pytest.approx(metrics["accuracy"])
    assert len(found.examples["accuracy"]) == 60


def test_soft_labels_are_credited_to_labels(make):
    task = make()
    soft = task.kind.random(task, task.generator("s"))
    soft.labelling = Labelling("batches", (0, 1), temperature=4.0, mix="cutmix", statistics="batch", parts=2)
    metrics = scored(task, soft).metrics
    known = references(task)
    against = control(task, soft.labelling, augmented=True)
    assert metrics["control"] == against
    assert metrics["label_value"] == pytest.approx(against - known["random"])
    assert metrics["label_floats"] == task.epochs(20) * 20 * 10 == 3 * 20 * 10


def test_the_whole_set_is_the_upper_bound_and_no_budget_applies(make):
    task = make()
    whole = task.kind.whole(task)
    metrics = scored(task, whole).metrics
    assert metrics["data_floats"] == 120 * 64
    assert task.spec.ceiling == "full"


def test_images_learn(make):
    """Training on the validation of the protocol: with enough updates a network knows the images that it saw."""
    task = make()
    real = task.split("train").take(torch.arange(40))
    store = task.store(real.x, real.y, Labelling(), augmented=False, seed=0)
    network = train_network(
        task.network("convnet(2,8,instance)", "t"), store, updates=250, lr=0.01, weight_decay=0.0, seed=0
    )
    assert float((network(real.x).argmax(1) == real.y).double().mean()) > 0.95


def test_the_rate_falls_to_zero_or_as_far_as_it_is_stretched(make):
    task = make()
    real = task.split("train").take(torch.arange(10))
    moves = []
    for stretch in (1.0, 2.0):
        store = task.store(real.x, real.y, Labelling("static", (0,), stretch=stretch), augmented=False, seed=0)
        networks = [
            train_network(task.network("convnet(1,4,none)", "t"), store, updates=n, lr=0.01, weight_decay=0.0, seed=0)
            for n in (50,)
        ]
        moves.append(torch.cat([p.detach().flatten() for p in networks[0].parameters()]))
    assert not torch.allclose(*moves)


def test_the_number_of_updates_is_constant():
    assert epochs_of(100, 50, 400) == 200
    assert epochs_of(10, 50, 400) == 400
    assert epochs_of(101, 50, 400) == 134


def test_a_saved_set_scores_the_same(make, tmp_path):
    task = make()
    base = task.kind.random(task, task.generator("s"))
    shared = torch.zeros(1, *task.shape)
    labelling = Labelling("static", (0, 1), (0.3, 0.7), temperature=3.0, mix="mixup")
    one = ImageSet(base.base[:10], base.labels[:10], labelling, shared, expansion(10, 1), facts={"a": 1.0})
    found = scored(task, one).metrics
    task.save(one, tmp_path / "set")
    assert json.loads((tmp_path / "set" / "kdbench.json").read_text())["distilled"] == "images"
    loaded = task.load(tmp_path / "set")
    assert loaded.labelling == labelling
    assert loaded.facts == {"a": 1.0}
    assert task.scores(loaded).metrics == found
    with pytest.raises(ArtifactError, match="no distilled set is of kind"):
        Distilled.of_kind("no such kind")


def test_shared_perturbations_are_added_and_counted(make):
    task = make()
    base, labels = torch.randn(4, *task.shape), torch.arange(4)
    shared = torch.randn(2, *task.shape)
    made = ImageSet(base, labels, shared=shared, rows=expansion(4, 2))
    images = made.images()
    assert len(images) == 4 * 3
    assert torch.equal(images[:4], base)
    assert torch.equal(images[4:8], base + shared[0])
    assert made.classes().tolist() == [0, 1, 2, 3] * 3
    assert made.floats(task)["data"] == 6 * 64


def test_what_is_no_distilled_set_is_refused(make):
    task = make()
    good = task.kind.random(task, task.generator("s"))
    low, _ = task.range
    more = [*range(20), 0]
    cases = [
        (torch.zeros(2), "evaluates Distilled"),
        (None, "return student"),
        (dataclasses.replace(good, base=good.base[more], labels=good.labels[more]), "keeps 1344 numbers"),
        (dataclasses.replace(good, base=good.base[:, :, :4]), "images of shape"),
        (dataclasses.replace(good, labels=good.labels + 5), "from 0 to 9"),
        (dataclasses.replace(good, base=good.base + 100), "task.pixels"),
        (dataclasses.replace(good, base=good.base * float("nan")), "NaN"),
        (dataclasses.replace(good, labelling=Labelling("static", (7,))), "has 2 members"),
    ]  # fmt: skip
    for model, message in cases:
        with pytest.raises(ArtifactError, match=message):
            task.check(model)
    assert float(task.pixels(good.base - 100).max()) == pytest.approx(float(low.max()))


def test_validation_looks_at_no_test_data_and_costs_nothing(make):
    task = make()
    task.budget.spend("steps", 3)
    found = task.validate(task.kind.random(task, task.generator("s")))
    assert 0 <= found["accuracy"] <= 1
    assert dict(task.budget.spent)["steps"] == 3
    assert task.phase == "train"


def test_the_gate_says_why(make):
    task = make(gate=Gate(whole=1.0, gap=1.0))
    task.phase = "evaluate"
    reasons = task.board_problems()
    assert len(reasons) == 2
    assert "whole set" in reasons[0]
    assert make().board_problems() == []


def test_metrics_that_are_not_measured_are_named(make):
    task = make(metrics=(Metric(name="beauty"),))
    with pytest.raises(JobError, match="not measured: beauty"):
        scored(task, task.kind.random(task, task.generator("s")))


def test_wrong_tasks_are_refused():
    spec = discover().task("dataset_distillation/digits", "smoke")
    for changes, message in (
        ({"committee": []}, "at least one network"),
        ({"student": "convnett(1,2,none)"}, "unknown architecture"),
        ({"evaluation": {"unseen": ["what(3)"]}}, "unknown architecture"),
    ):
        with pytest.raises(ValidationError, match=message):
            type(spec).model_validate({**spec.model_dump(), **changes})


def test_tasks_share_committees_whatever_their_budget():
    ten, one = (discover().task(f"dataset_distillation/{name}", "cpu") for name in ("shapes", "shapes-1"))
    assert ten.committee_keys() == one.committee_keys()
    assert ten.teacher_key() == one.teacher_key()
