"""Teachers that a method trains further: their data, what they say, what they cost."""

import pytest
import torch
from torch.nn import functional as F

from kdbench.errors import JobError, OverBudget
from kdbench.tracks.vision.batches import roll
from kdbench.tracks.vision.teachers import pseudo_labels, train_on


def test_the_teachers_images_have_all_classes_and_no_identity(make_task):
    task = make_task("shapetex-fewclass")
    split, own = task.teacher_split(), task.split("train")
    assert len(split) == 120
    assert set(split.y.tolist()) == set(range(30))
    assert not {7, 19} & set(own.y.tolist())
    assert bool((split.index == -1).all())
    assert split.meta == {}


def test_teachers_without_data_or_with_rationed_answers_cannot_be_trained(make_task):
    with pytest.raises(JobError, match="no original data"):
        make_task("webly").teacher_split()
    with pytest.raises(OverBudget):
        make_task("active").teacher_split()


def test_answers_are_those_of_the_network_and_are_metered(make_task):
    task = make_task("digits-gap")
    network = task.teacher(trainable=True)
    ask = task.answers(network)
    assert task.budget.spent.get("teacher_queries", 0) == 0
    batch = task.split("train").batch(torch.tensor([3, 0, 7]))
    with torch.no_grad():
        expected = network(batch.x)
        spent = task.budget.spent["teacher_queries"]
        assert torch.allclose(ask(batch), expected, atol=1e-5)
    assert task.budget.spent["teacher_queries"] == spent + 3
    batch.x, batch.augmented = roll(batch.x, torch.Generator().manual_seed(1)), True
    with torch.no_grad():
        assert torch.allclose(ask(batch), network(batch.x), atol=1e-5)
    assert not any(p.requires_grad for p in network.parameters())
    assert not network.training


def test_training_on_is_auxiliary(make_task):
    task = make_task("digits-gap")
    network, split = task.teacher(trainable=True), task.teacher_split()
    before = {name: p.detach().clone() for name, p in network.named_parameters()}

    def loss(model, batch):
        return F.cross_entropy(model(batch.x), batch.y)

    train_on(task, network, loss, split, steps=2, rate=0.1, tag="more")
    assert task.budget.spent["aux_steps"] == 2
    assert "steps" not in task.budget.spent
    assert any(not torch.equal(before[name], p) for name, p in network.named_parameters())


def test_hidden_labels_are_the_teachers(make_task):
    task = make_task("digits-fewlabel")
    split = task.split("train")
    labels = pseudo_labels(split, task.teacher_logits)
    hidden = split.y < 0
    assert bool(hidden.any())
    assert torch.equal(labels[~hidden], split.y[~hidden])
    assert torch.equal(labels[hidden], task.teacher_logits(split.batch()).argmax(1)[hidden])
    every = make_task("digits-gap")
    assert torch.equal(pseudo_labels(every.split("train"), every.teacher_logits), every.split("train").y)
    assert "teacher_queries" not in every.budget.spent
