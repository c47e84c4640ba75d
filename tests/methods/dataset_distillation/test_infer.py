"""INFER: compensators that serve all classes."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from kdbench.cache import Cache
from kdbench.registry import discover
from kdbench.tracks.dataset_distillation.blocks.compensators import compensate
from kdbench.tracks.dataset_distillation.blocks.recover import recovery_terms
from kdbench.tracks.dataset_distillation.blocks.views import mix
from kdbench.tracks.dataset_distillation.spec import DDSpec
from kdbench.tracks.dataset_distillation.task import DDTask
from kdbench_methods.dataset_distillation import infer


@pytest.fixture
def task(tmp_path):
    spec = discover().task("dataset_distillation/digits", "smoke")
    assert isinstance(spec, DDSpec)
    return DDTask(spec, seed=0, method="infer", folder=tmp_path, cache=Cache())


def test_a_set_has_the_declared_parts(run):
    found = run("dataset_distillation/infer", "digits").outcome
    # ipc 2, two networks, ten classes: floor(2 / 1.2) = 1 image of a class, and one compensator of each network
    assert found.extra["images_kept"] == 10
    assert found.extra["compensators"] == 2
    assert found.extra["images_learned"] == 30
    assert found.metrics["data_floats"] == 12 * 64
    assert found.metrics["label_floats"] == 30 * 10
    assert found.extra["compensator_norm"] > 0.1
    assert found.extra["margin"] > 0


def test_labels_of_batches_take_more_numbers(run):
    static = run("dataset_distillation/infer", "digits").outcome.metrics
    batches = run("dataset_distillation/infer", "digits", labels="batches").outcome.metrics
    epochs = 2  # six updates of ten images at a time
    assert batches["label_floats"] == epochs * static["label_floats"]
    assert batches["data_floats"] == static["data_floats"]


def test_a_compensator_of_one_class_costs_an_image(run):
    found = run("dataset_distillation/infer", "digits", shared=False, members=1).outcome
    assert found.extra["images_kept"] == 10
    assert found.extra["compensators"] == 10
    assert found.metrics["data_floats"] == 20 * 64


def test_the_loss_falls_for_all_classes_at_once(task):
    network, classes = task.committee()[0], torch.arange(task.classes)
    base = torch.stack([task.split("train").x[task.split("train").y == c][:2] for c in classes], 1)
    found = compensate(task, base, classes, network, steps=24, lr=0.25, r_bn=1.0, shared=True, purpose="compensator/0")
    assert found.shape == (2, 1, 8, 8)
    before, after = (
        sum(
            float(v)
            for v in recovery_terms(x.flatten(0, 1), classes.repeat(2), [network], [1.0], 1.0, groups=2).values()
        )
        for x in (base, base + found.unsqueeze(1))
    )
    assert after < before


def test_compensators_do_not_depend_on_one_another(task):
    """The first of two is the one that is made alone, where both meet the same shifts."""
    network, classes = task.committee()[0], torch.arange(task.classes)
    base = torch.stack([task.split("train").x[task.split("train").y == c][:2] for c in classes], 1)
    how = {"steps": 1, "lr": 0.25, "r_bn": 1.0, "shared": True}
    both = compensate(task, base, classes, network, purpose="a", **how)
    alone = compensate(task, base[:1], classes, network, purpose="a", **how)
    torch.testing.assert_close(both[:1], alone)


def test_labels_of_mixed_images_are_interpolated(task):
    found = infer.train(task, infer.InferParams())
    store = task.store(found.images(), found.classes(), found.labelling, augmented=False, seed=0)
    mean = torch.stack([network(found.images()) for network in task.committee()]).mean(0)
    torch.testing.assert_close(store.logits, mean)
    mixed = mix(found.images()[:6], "mixup", 0.8, np.random.default_rng(0))
    wanted = mixed.lam * mean[:6] + (1 - mixed.lam) * mean[mixed.perm]
    torch.testing.assert_close(mixed.interpolate(store.logits[:6]), wanted)
    assert 0 < mixed.lam < 1


def test_sets_are_saved_and_read(task, tmp_path):
    found = infer.train(task, infer.InferParams(iterations=2))
    task.save(found, tmp_path / "set")
    again = task.load(tmp_path / "set")
    assert torch.equal(again.images(), found.images())
    assert again.labelling == found.labelling


def test_an_interrupted_job_goes_on(interrupted):
    interrupted("dataset_distillation/infer", "digits", 15)
