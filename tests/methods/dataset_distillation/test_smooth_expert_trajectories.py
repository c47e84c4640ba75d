"""AST: identities with plain trajectory matching, factors, perturbations, intermediate matches."""

from __future__ import annotations

import math

import pytest
import torch

from kdbench.tracks.dataset_distillation.blocks.flat import FlatNetwork, unroll
from kdbench.tracks.dataset_distillation.blocks.trajectories import trajectory_loss
from kdbench.tracks.dataset_distillation.networks.build import build
from kdbench_methods.dataset_distillation import mtt
from kdbench_methods.dataset_distillation import smooth_expert_trajectories as ast


@pytest.fixture
def network():
    torch.manual_seed(0)
    return FlatNetwork(build("convnet(2,4,instance)", (1, 8, 8), 3))


def test_balance_factor():
    assert ast.balance_factor(4, 8) == pytest.approx(math.log(8, 5))
    assert ast.balance_factor(4, 8) == pytest.approx(1.292, abs=1e-3)
    assert ast.balance_factor(0, 8) == pytest.approx(1 / math.log(4 + 8, 5))
    assert ast.balance_factor(0, 20) == pytest.approx(1 / math.log(10 + 8, 5))
    assert ast.balance_factor(19, 20) == pytest.approx(math.log(9 + 8, 5))


def test_perturbation_scales_kernels_alone(network):
    theta = network.vector().double()
    assert ast.perturbed(network, theta, 0.0, torch.Generator()) is theta
    moved = ast.perturbed(network, theta, 1.0, torch.Generator().manual_seed(0))
    before, after = network.parts(theta), network.parts(moved)
    for name, value in before.items():
        if name not in network.kernels:
            assert torch.equal(after[name], value), name
            continue
        noise = (after[name] - value) / value
        assert float(noise.norm()) == pytest.approx(1, abs=1e-9), "d / ||d||_F, times the weights"
    assert len(network.kernels) == 2


def test_without_its_parts_it_is_trajectory_matching(network):
    generator = torch.Generator().manual_seed(1)
    way = torch.stack([network.vector() + 0.1 * k for k in range(4)])
    x, y = torch.randn(6, 1, 8, 8, generator=generator), torch.arange(6) % 3
    theta = ast.perturbed(network, way[0], 0.0, generator)
    reached = unroll(network, theta, [(x, y)] * 6, 0.05, momentum=0.9)
    plain = trajectory_loss(reached[-1], way[0], way[2])
    assert torch.equal(ast.matching_loss(reached, theta, way, 0, 2, "none"), plain)
    more = ast.matching_loss(reached, theta, way, 0, 2, "constant")
    middle = trajectory_loss(reached[2], way[0], way[1])
    assert float(more) == pytest.approx(float(plain + middle), rel=1e-6)
    adaptive = ast.matching_loss(reached, theta, way, 0, 2, "adaptive")
    assert float(adaptive) == pytest.approx(float(plain + middle / 2), rel=1e-6)
    three = ast.matching_loss(reached, theta, way, 0, 3, "constant")
    expected = sum(trajectory_loss(reached[i], way[0], way[k]) for i, k in ((5, 3), (1, 1), (3, 2)))
    assert float(three) == pytest.approx(float(expected), rel=1e-6)


def test_methods_agree_where_nothing_is_added(make):
    """The same experts, first images, segments and inner loop give the same images, to the last bit."""
    off = {"clip_start": 1.0, "penalty": 0.0, "weight_decay": 0.0, "decay": 1.0, "init": "random"}
    off |= {"perturbation": 0.0, "balanced": False, "between": "none", "momentum": 0.9, "expert_lr": 0.01}
    one = ast.train(make(), ast.SmoothParams(**off))
    other = mtt.train(make(), mtt.MttParams(momentum=0.9, expert_momentum=0.9, expert_lr=0.01, rate=0.01))
    assert torch.equal(one.labels, other.labels)
    assert torch.equal(one.base, other.base)
    full = ast.train(make(), ast.SmoothParams())
    assert not torch.equal(full.base, other.base)


def test_first_images_are_real_and_of_their_class(make):
    task = make()
    ways, flat = ast.experts(task, ast.recipe_of(ast.SmoothParams())), FlatNetwork(task.student())
    rows = ast.representative_rows(task, flat, ways, task.rng("t"))
    labels = task.split("train").y[rows]
    assert labels.tolist() == list(range(10)) * task.ipc
    assert len(set(rows.tolist())) == 10 * task.ipc


def test_what_is_found_out_is_told(make):
    task = make()
    made = ast.train(task, ast.SmoothParams())
    assert made.facts["grand_loss"] >= 0
    assert made.facts["inner_rate"] > 0
    assert task.budget.spent["expert_steps"] > 0
    task.phase = "evaluate"
    spent = dict(task.budget.spent)
    found = ast.evaluate(task, made, ast.SmoothParams())
    assert {"expert_change", "expert_accuracy", "grand_loss"} <= set(found)
    assert task.budget.spent["expert_steps"] == spent["expert_steps"]
