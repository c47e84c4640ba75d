"""Baselines: real images that are real, means that are means, and steps that are counted."""

from __future__ import annotations

import pytest
import torch

from kdbench_methods.dataset_distillation import (
    class_mean,
    dc,
    dm,
    full,
    herding,
    kmeans,
    mtt,
    random,
    random_soft,
    sre2l,
)


def rows_of(task, images):
    """The position of each image in the training split; raises where one is not there."""
    real = task.split("train").x
    distance = torch.cdist(images.flatten(1), real.flatten(1), compute_mode="donot_use_mm_for_euclid_dist")
    assert float(distance.amin(1).max()) < 1e-4
    return distance.argmin(1)


@pytest.mark.parametrize("method", [random, kmeans, herding])
def test_chosen_images_are_real_and_balanced(make, method):
    task = make()
    made = method.train(task)
    assert made.labels.bincount().tolist() == [task.ipc] * 10
    rows = rows_of(task, made.base)
    assert torch.equal(task.split("train").y[rows], made.labels)
    assert len(set(rows.tolist())) == len(rows)


def test_random_subsets_differ_by_seed(make):
    assert not torch.equal(random.train(make(seed=0)).base, random.train(make(seed=1)).base)


def test_one_image_a_class_is_the_mean_of_the_class(make):
    task = make("digits-1")
    task = make("digits-1", data=task.spec.data.model_copy(update={"ipc": 1}))
    made = class_mean.train(task)
    real = task.split("train")
    for image, label in zip(made.base, made.labels, strict=True):
        assert torch.allclose(image, task.pixels(real.x[real.y == label].mean(0)), atol=1e-5)


def test_several_means_are_of_disjoint_parts(make):
    task = make()
    made = class_mean.train(task)
    real = task.split("train")
    assert made.labels.tolist() == list(range(10)) * task.ipc
    for label in range(10):
        own = made.base[made.labels == label].mean(0)
        assert float((own - real.x[real.y == label].mean(0)).abs().max()) < 0.6


def test_soft_labels_of_random_images(make):
    task = make()
    made = random_soft.train(task, random_soft.RandomSoftParams())
    assert made.labelling.members == (0, 1)
    static = random_soft.train(task, random_soft.RandomSoftParams(labels="static", members=1, mix="mixup"))
    assert static.labelling.members == (0,)
    assert static.labelling.parts == 1
    assert torch.equal(made.base, static.base)


@pytest.mark.parametrize(
    ("train", "steps"),
    [
        (lambda task: dm.train(task, dm.DmParams(steps_fraction=0.5)), 12),
        (lambda task: dc.train(task, dc.DcParams(steps_fraction=0.5, reset=5)), 12),
        (lambda task: mtt.train(task, mtt.MttParams(steps_fraction=0.5)), 12),
        (lambda task: sre2l.train(task, sre2l.Sre2lParams()), 24),
        (lambda task: sre2l.train(task, sre2l.Sre2lParams(init="real", labels="hard")), 24),
    ],
    ids=["dm", "dc", "mtt", "sre2l", "sre2l-real"],
)
def test_matched_images_are_pictures_that_moved(make, train, steps):
    task = make()
    made = train(task)
    task.check(made)
    assert task.budget.spent["steps"] == steps
    assert made.labels.bincount().tolist() == [task.ipc] * 10
    real = task.split("train").x.flatten(1)
    assert float(torch.cdist(made.base.flatten(1), real).amin(1).min()) > 1e-3


def test_distributions_come_nearer(make):
    task = make()
    made = dm.train(task, dm.DmParams(steps_fraction=1.0, per_class=8))
    real = task.split("train")
    network = task.network("convnet(1,16,instance)", "t")

    def distance(x, y):
        found = network.taps(x).penult.detach()
        mine = dm.class_means(found, y, 10)
        target = dm.class_means(network.taps(real.x).penult.detach(), real.y, 10)
        return float(dm.distribution_loss(target, mine))

    start = real.x[dm.random_rows(real.y, task.ipc, task.generator("start"))]
    assert distance(made.base, made.labels) < distance(start, made.labels)


def test_the_whole_set_costs_no_step(make):
    task = make()
    task.check(full.train(task))
    assert "steps" not in task.budget.spent
