"""Labels: what they cost, that batches are labelled as they are learned, and statistics that are put back."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from kdbench.errors import ArtifactError
from kdbench.tracks.dataset_distillation.blocks.labelling import (
    Labelling,
    batch_statistics,
    hard_loss,
    learning_loss,
    vote,
)
from kdbench.tracks.dataset_distillation.blocks.store import Store
from kdbench.tracks.dataset_distillation.networks.build import build


@pytest.fixture
def networks():
    torch.manual_seed(0)
    made = [build(arch, (1, 8, 8), 4) for arch in ("mini_resnet(2)", "mini_vgg(2)")]
    for network in made:
        for _ in range(3):
            network.train()(torch.randn(16, 1, 8, 8))
    return [network.eval().requires_grad_(False) for network in made]


@pytest.fixture
def images():
    return torch.randn(12, 1, 8, 8, generator=torch.Generator().manual_seed(1)), torch.arange(12) % 4


def store(images, networks, labelling, **changes):
    options = {"batch_size": 4, "augmented": True, "flip": False, "seed": 3} | changes
    return Store(*images, labelling, networks, **options)


def test_weights_vote_and_equal_ones_are_the_mean(networks, images):
    x = images[0]
    one, other = (network(x) for network in networks)
    mean = vote(networks, Labelling("static", (0, 1)), x)
    assert torch.allclose(mean, (one + other) / 2, atol=1e-6)
    skewed = vote(networks, Labelling("static", (0, 1), (0.25, 0.75)), x)
    assert torch.allclose(skewed, 0.25 * one + 0.75 * other, atol=1e-6)
    assert torch.equal(vote(networks, Labelling("static", (1,)), x), other)


def test_statistics_of_the_batch_are_used_and_the_networks_own_come_back(networks, images):
    network, x = networks[0], images[0]
    before = {name: value.clone() for name, value in network.state_dict().items()}
    addresses = {name: value.data_ptr() for name, value in network.named_buffers()}
    with batch_statistics(network):
        found = network(x)
    assert not torch.allclose(found, network(x))
    trained = build("mini_resnet(2)", (1, 8, 8), 4)
    trained.load_state_dict(before)
    assert torch.allclose(found, trained.train()(x), atol=1e-5), "as in training mode"
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())
    assert addresses == {name: value.data_ptr() for name, value in network.named_buffers()}
    with pytest.raises(RuntimeError, match="stop"), batch_statistics(network):
        raise RuntimeError("stop")
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())


def test_the_loss_is_a_divergence(networks):
    logits, target = torch.randn(2, 5, 4, dtype=torch.float64)
    for t in (1.0, 20.0):
        labelling = Labelling("static", (0,), temperature=t)
        p, q = F.softmax(target / t, -1).float(), F.softmax(logits / t, -1).float()
        expected = (p * (p / q).log()).sum(-1).mean()
        assert learning_loss(logits, target, labelling) == pytest.approx(float(expected), rel=1e-3)
        squared = learning_loss(logits, target, Labelling("static", (0,), temperature=t, squared=True))
        assert squared == pytest.approx(float(t**2 * learning_loss(logits, target, labelling)), rel=1e-6)
    assert learning_loss(target, target, labelling) == pytest.approx(0, abs=1e-7)


def test_hard_labels_of_mixed_images_are_shared():
    logits, a, b = torch.randn(5, 4), torch.tensor([0, 1, 2, 3, 0]), torch.tensor([1, 1, 0, 2, 3])
    mixed = hard_loss(logits, a, b, 0.3)
    assert mixed == pytest.approx(float(0.3 * F.cross_entropy(logits, a) + 0.7 * F.cross_entropy(logits, b)))


def test_batches_are_labelled_as_they_are_learned(networks, images):
    labelling = Labelling("batches", (0, 1), mix="cutmix", statistics="batch", parts=2, temperature=4.0)
    made = store(images, networks, labelling)
    first = list(made.epoch(0, seed=1))
    assert [len(parts) for parts in first] == [2, 2, 2]
    for part in (part for parts in first for part in parts):
        target = vote(networks, labelling, part.x)
        logits = torch.randn(len(part), 4)
        assert part.loss(logits) == pytest.approx(float(learning_loss(logits, target, labelling)), rel=2e-2)
    again = list(made.epoch(0, seed=99))
    assert all(torch.equal(a.x, b.x) for x, y in zip(first, again, strict=True) for a, b in zip(x, y, strict=True)), (
        "labels belong to their views, whatever the seed of the training"
    )
    list(made.epoch(1, seed=1))
    assert made.kept == labelling.floats(12, 4, epochs=2) == 2 * 12 * 4


def test_static_labels_are_stored_once_and_views_are_the_trainings(networks, images):
    labelling = Labelling("static", (0, 1), mix="mixup", alpha=0.8)
    made = store(images, networks, labelling)
    assert made.kept == labelling.floats(12, 4, epochs=50) == 12 * 4
    one, other = list(made.epoch(0, seed=1)), list(made.epoch(0, seed=2))
    assert not torch.equal(one[0][0].x, other[0][0].x)
    assert torch.allclose(made.logits, vote(networks, labelling, images[0]))


def test_classes_alone_cost_nothing(images):
    made = store(images, [], Labelling(), augmented=False)
    assert made.kept == Labelling().floats(12, 4, 50) == 0
    batch = next(made.epoch(0, 0))[0]
    logits = torch.randn(4, 4)
    rows = [int((images[0] - x).flatten(1).norm(dim=1).argmin()) for x in batch.x]
    assert batch.loss(logits) == pytest.approx(float(F.cross_entropy(logits, images[1][rows])))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"kind": "static"}, "at least one"),
        ({"members": (0,)}, "have no members"),
        ({"kind": "static", "members": (0, 1), "weights": (1.0,)}, "1 weights are given for 2"),
        ({"kind": "static", "members": (0, 1), "weights": (0.5, 0.6)}, "sum to 1"),
        ({"kind": "static", "members": (0,), "temperature": 0.0}, "positive"),
    ],
)
def test_wrong_labellings_are_refused(fields, message):
    with pytest.raises(ArtifactError, match=message):
        Labelling(**fields)
