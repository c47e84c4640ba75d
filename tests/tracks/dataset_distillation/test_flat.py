"""Training as a function of images: unrolled steps, their gradients, and experts."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from kdbench.tracks.dataset_distillation.blocks.experts import (
    Expert,
    ExpertRecipe,
    expert_accuracy,
    experts,
    gradient_penalty,
    parameter_change,
)
from kdbench.tracks.dataset_distillation.blocks.flat import FlatNetwork, unroll
from kdbench.tracks.dataset_distillation.blocks.trajectories import Synthetic, inner_batches, trajectory_loss
from kdbench.tracks.dataset_distillation.networks.build import build


@pytest.fixture
def network():
    torch.manual_seed(0)
    return FlatNetwork(build("convnet(1,3,instance)", (1, 4, 4), 3).double())


@pytest.fixture
def data():
    generator = torch.Generator().manual_seed(1)
    return torch.randn(5, 1, 4, 4, dtype=torch.float64, generator=generator), torch.tensor([0, 1, 2, 0, 1])


def plain(logits, y):
    return F.cross_entropy(logits.double(), y)


def double_unroll(network, theta, batches, lr, **options):
    """``unroll`` in float64: the inner loss of the block is float32."""

    class Double(FlatNetwork):
        def __call__(self, theta, x):
            return _NoFloat(super().__call__(theta, x))

    class _NoFloat(torch.Tensor):
        @staticmethod
        def __new__(cls, value):
            return value.as_subclass(cls)

        def float(self):
            return self.as_subclass(torch.Tensor)

    return unroll(Double(network.network), theta, batches, lr, loss=plain, **options)


def test_weights_are_a_vector_and_back(network, data):
    theta = network.vector()
    assert torch.equal(network.joined(network.parts(theta)), theta)
    assert torch.allclose(network(theta, data[0]), network.network(data[0]))
    moved = network(theta + 0.1, data[0])
    assert not torch.allclose(moved, network.network(data[0])), "the network itself stays as it is"
    with pytest.raises(ValueError, match="keeps statistics"):
        FlatNetwork(build("mini_vgg(2)", (1, 8, 8), 4))


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_unrolled_steps_are_those_of_sgd(network, data, momentum):
    x, y = data
    reached = double_unroll(network, network.vector(), [(x, y)] * 4, 0.1, momentum=momentum)
    optimizer = torch.optim.SGD(network.network.parameters(), lr=0.1, momentum=momentum)
    for step in range(4):
        optimizer.zero_grad()
        F.cross_entropy(network.network(x), y).backward()
        optimizer.step()
        assert torch.allclose(reached[step].detach(), network.vector(), atol=1e-10)


def test_gradients_in_images_and_rate_go_through_all_steps(network, data):
    x, y = data
    start, target = network.vector(), network.vector() + 0.05

    def outer(images, rate):
        reached = double_unroll(network, start, [(images, y)] * 3, rate, momentum=0.9, factor=0.7)
        return trajectory_loss(reached[-1], start, target)

    images, rate = x.clone().requires_grad_(True), torch.tensor(0.05, dtype=torch.float64, requires_grad=True)
    by_image, by_rate = torch.autograd.grad(outer(images, rate), [images, rate])
    eps = 1e-5
    for place in ((0, 0, 1, 2), (3, 0, 0, 0)):
        up, down = x.clone(), x.clone()
        up[place] += eps
        down[place] -= eps
        slope = (outer(up, rate) - outer(down, rate)) / (2 * eps)
        assert float(by_image[place]) == pytest.approx(slope.item(), rel=1e-4, abs=1e-9)
    slope = (outer(x, rate + eps) - outer(x, rate - eps)) / (2 * eps)
    assert float(by_rate) == pytest.approx(slope.item(), rel=1e-4)


def test_the_distance_is_relative(network):
    start = network.vector()
    assert trajectory_loss(start, start, start + 1) == 1
    assert trajectory_loss(start + 1, start, start + 1) == 0


def test_inner_batches_take_every_image_before_one_twice():
    images, labels = torch.arange(6.0)[:, None, None, None], torch.arange(6)
    rng = np.random.default_rng(0)
    taken = [y for _, y in inner_batches(images, labels, 2, 6, rng, augmented=False, flip=False)]
    assert sorted(torch.cat(taken[:3]).tolist()) == sorted(torch.cat(taken[3:]).tolist()) == list(range(6))
    few = list(inner_batches(images, labels, 50, 2, rng, augmented=False, flip=False))
    assert [len(y) for _, y in few] == [6, 6]


def test_the_inner_rate_stays_positive():
    model = Synthetic(torch.zeros(2, 1, 4, 4), rate=0.02, scale=2.0)
    assert model.rate().item() == pytest.approx(0.02)
    with torch.no_grad():
        model.raw.fill_(-50.0)
    assert float(model.rate()) > 0


def test_the_penalty_is_of_gradients_over_channels(data):
    torch.manual_seed(0)
    linear = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(2 * 4, 3)).double()
    x = torch.randn(6, 2, 2, 2, dtype=torch.float64)
    gradient = linear[1].weight.sum(0).view(2, 2, 2)
    expected = (gradient.norm(dim=0) - 1).pow(2).mean()
    found = gradient_penalty(linear, x)
    assert float(found) == pytest.approx(float(expected), rel=1e-9)
    found.backward()
    assert linear[1].weight.grad is not None


def test_the_clipping_loss_grows_to_one():
    recipe = ExpertRecipe(clip_start=0.5)
    assert [round(recipe.factor(e), 10) for e in (0, 1, 9, 10, 30)] == [0.5, 0.55, 0.95, 1.0, 1.0]
    assert ExpertRecipe().factor(0) == 1


def test_experts_are_made_once_and_charged_to_everybody(make):
    task = make()
    ways = experts(task, ExpertRecipe(lr=0.05, momentum=0.9))
    assert [way.weights.shape[0] for way in ways] == [5, 5]
    assert ways[0].epochs == 4
    assert not torch.equal(ways[0].weights, ways[1].weights)
    other = make(seed=1, method="other")
    assert torch.equal(experts(other, ExpertRecipe(lr=0.05, momentum=0.9))[0].weights, ways[0].weights)
    assert task.budget.spent["expert_steps"] == other.budget.spent["expert_steps"] == 2 * 4 * 3
    assert 0 <= expert_accuracy(task, ways) <= 1
    slow = experts(task, ExpertRecipe(lr=0.0005))
    assert parameter_change(slow) < parameter_change(ways)


def test_change_is_the_mean_step():
    way = Expert(torch.tensor([[0.0, 0.0], [3.0, 4.0], [3.0, 5.0]]))
    assert parameter_change([way]) == pytest.approx((5 + 1) / 2)


def test_a_clipped_loss_changes_weights_less(make):
    task = make()
    common = {"lr": 0.05, "momentum": 0.9}
    rough = experts(task, ExpertRecipe(**common))
    smooth = experts(task, ExpertRecipe(**common, clip_start=0.5))
    assert parameter_change(smooth) < parameter_change(rough)
    penalised = experts(task, ExpertRecipe(**common, penalty=2.0))
    assert not torch.equal(penalised[0].weights, rough[0].weights)
    assert torch.equal(penalised[0].weights[0], rough[0].weights[0])
