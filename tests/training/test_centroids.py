"""Centroids of a network, the weights that are kept, and hints."""

import math
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from kdbench.losses.centroids import class_centroids
from kdbench.tracks.vision.models import build
from kdbench.training.best import BestWeights
from kdbench.training.centroids import network_centroids, training_outputs
from kdbench.training.hints import hint_loss


def network():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Linear(6, 3))
    model[1].running_mean.fill_(0.5)
    return model.eval()


def test_training_mode_leaves_no_trace():
    model, x = network(), torch.randn(10, 4, generator=torch.Generator().manual_seed(1))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    out = training_outputs(model, x)
    assert not model.training
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    with torch.no_grad():
        assert not torch.allclose(out, F.softmax(model(x), -1))
        assert torch.allclose(out, F.softmax(model.train()(x), -1))
    assert not torch.equal(before["1.running_mean"], model[1].running_mean)  # which an ordinary pass does change


def test_centroids_are_those_of_all_batches():
    g = torch.Generator().manual_seed(1)
    model, x, y = network(), torch.randn(12, 4, generator=g), torch.randint(3, (12,), generator=g)
    batches = list(zip(x.split(8), y.split(8), strict=True))
    outputs = torch.cat([training_outputs(model, part) for part, _ in batches])
    assert torch.allclose(network_centroids(model, batches, 3), class_centroids(outputs, y))
    assert torch.allclose(network_centroids(model, [], 3), torch.full((3, 3), 1 / 3))


def test_the_best_weights_come_back():
    model = nn.Linear(1, 1, bias=False)
    best = BestWeights(model)
    best.restore()  # nothing was offered
    for step, value in enumerate([3.0, 1.0, 2.0, math.nan]):
        model.weight.data.fill_(step)
        assert best.offer(step, value) == (step < 2)
    again = BestWeights(model)
    again.load_state_dict(best.state_dict())
    again.restore()
    assert model.weight.item() == 1
    assert (again.step, again.value) == (1, 1.0)


@pytest.mark.parametrize("pair", [("rn(2,1)", "rn(4,1)"), ("rn(2,1)", "vit(8,1,2)"), ("vit(8,1,2)", "mixer(8,1)")])
def test_hints_fit_any_pair_of_families(pair):
    student, teacher = (build(arch, 3) for arch in pair)
    batch = SimpleNamespace(x=torch.randn(4, 3, 16, 16), y=torch.tensor([0, 1, 2, 0]))
    regressor, loss = hint_loss(student, batch, lambda each: teacher.taps(each.x), depth=1.0, weight=2.0)
    terms = loss(student, batch)
    sum(terms.values()).backward()
    assert set(terms) == {"ce", "hint"}
    assert all(p.grad is not None for p in regressor.parameters())
    assert all(p.grad is None for p in teacher.parameters())
