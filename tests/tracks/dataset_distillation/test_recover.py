"""Statistics of batches, and images that networks recognise."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from kdbench.tracks.dataset_distillation.blocks.bn import bn_loss, with_statistics
from kdbench.tracks.dataset_distillation.blocks.recover import Canvas, recover, recovery_terms, rolled, view_of
from kdbench.tracks.dataset_distillation.networks.build import build


def test_distances_are_those_of_the_inputs_to_the_running_statistics():
    torch.manual_seed(0)
    layer = nn.BatchNorm2d(3).double()
    layer.running_mean.copy_(torch.tensor([1.0, 0.0, -1.0]))
    layer.running_var.copy_(torch.tensor([2.0, 1.0, 0.5]))
    model = nn.Sequential(layer).eval()
    x = torch.randn(5, 3, 4, 4, dtype=torch.float64)
    _, (distance,) = with_statistics(model, x)
    mean, var = x.mean((0, 2, 3)), x.var((0, 2, 3), unbiased=False)
    expected = (layer.running_var - var).norm() + (layer.running_mean - mean).norm()
    assert float(distance) == pytest.approx(float(expected), abs=1e-12)


def test_a_batch_with_the_running_statistics_has_no_distance():
    model = build("mini_vgg(2)", (1, 8, 8), 4).double()
    x = torch.randn(16, 1, 8, 8, dtype=torch.float64)
    for layer in (m for m in model.modules() if isinstance(m, nn.BatchNorm2d)):
        layer.momentum = 1.0
    model.train()(x)
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    rows = 16 * 64
    norms[0].running_var.mul_((rows - 1) / rows)  # torch keeps the unbiased variance
    _, distances = with_statistics(model.eval(), x)
    assert float(distances[0]) == pytest.approx(0, abs=1e-9)
    assert not list(model.modules())[1]._forward_pre_hooks


def test_the_first_layer_counts_ten_times():
    distances = [torch.tensor(2.0), torch.tensor(3.0), torch.tensor(4.0)]
    assert bn_loss(distances) == 27
    assert bn_loss(distances, first=1.0) == 9


def test_training_mode_and_networks_without_statistics_are_refused():
    x = torch.randn(2, 1, 8, 8)
    with pytest.raises(ValueError, match="evaluation mode"):
        with_statistics(build("mini_vgg(2)", (1, 8, 8), 4).train(), x)
    with pytest.raises(ValueError, match="has no batch normalisation"):
        with_statistics(build("convnet(1,2,none)", (1, 8, 8), 4).eval(), x)


def test_one_member_is_the_objective_of_a_single_model():
    torch.manual_seed(0)
    one, other = (build(arch, (1, 8, 8), 4).double().eval() for arch in ("mini_vgg(2)", "mini_resnet(2)"))
    x, y = torch.randn(4, 1, 8, 8, dtype=torch.float64), torch.arange(4)
    alone = recovery_terms(x, y, [one], [1.0], 0.01)
    logits, distances = with_statistics(one, x)
    assert float(alone["ce"]) == pytest.approx(float(F.cross_entropy(logits.float(), y)), rel=1e-6)
    assert float(alone["bn"]) == pytest.approx(float(0.01 * bn_loss(distances)), rel=1e-9)
    second = recovery_terms(x, y, [other], [1.0], 0.01)
    both = recovery_terms(x, y, [one, other], [0.25, 0.75], 0.01)
    for name, value in both.items():
        assert float(value) == pytest.approx(float(0.25 * alone[name] + 0.75 * second[name]), rel=1e-6)


def test_recovered_images_are_recognised_and_stay_pictures(make):
    task = make()
    start = torch.randn(10, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    network, y = task.committee()[0], torch.arange(10)
    before = recovery_terms(start, y, [network], [1.0], 0.01)
    found = recover(task, start, y, [network], [1.0], steps=20, lr=0.25, r_bn=0.01, view=lambda x, rng: x, purpose="t")
    after = recovery_terms(found, y, [network], [1.0], 0.01)
    assert float(after["ce"]) < float(before["ce"])
    assert float(sum(after.values())) < float(sum(before.values()))
    low, high = task.range
    assert bool((found >= low).all() & (found <= high).all())
    assert task.budget.spent["steps"] == 20
    assert task.budget.spent["teacher_queries"] == 10 * 22


def test_views_of_recovery_keep_gradients(make):
    rng = make().rng("t")
    canvas = Canvas(torch.randn(3, 1, 8, 8))
    view_of(crop=True, flip=True)(canvas(), rng).sum().backward()
    assert float(canvas.pixels.grad.abs().sum()) > 0
    x = torch.randn(2, 1, 8, 8)
    assert sorted(rolled(x, rng).flatten().tolist()) == sorted(x.flatten().tolist())
