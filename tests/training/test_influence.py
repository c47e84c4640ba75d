"""Influence: products against autograd, retraining of the convex head, sign, solvers against each other, weights."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from kdbench.tracks.vision.models import build
from kdbench.tracks.vision.models.base import Classifier, Taps
from kdbench.training import heads
from kdbench.training.influence import Network, influence_weights, influences, leave_out_effects, solve_head

DAMPING = 1e-2


class Linear(Classifier):
    """A classifier whose only layer is its last one."""

    def __init__(self, width=4, classes=3):
        super().__init__()
        self.num_classes = classes
        self.fc = nn.Linear(width, classes)

    def head(self):
        return self.fc

    def taps(self, x):
        return Taps([], x, self.fc(x))


def problem(n=60, seed=0, classes=3, width=4, apart=1.5):
    centers = apart * torch.randn(classes, width, generator=torch.Generator().manual_seed(9))
    g = torch.Generator().manual_seed(seed)
    y = torch.randint(classes, (n,), generator=g)
    return centers[y] + torch.randn(n, width, generator=g), y


def linear(classes=3):
    torch.manual_seed(1)
    return Linear(classes=classes)


def set_head(model, weights):
    with torch.no_grad():
        model.fc.weight.copy_(weights[:, :-1])
        model.fc.bias.copy_(weights[:, -1])


def test_head_derivatives_are_those_of_autograd():
    (x, y), model = problem(), linear()
    features, w = heads.head_inputs(model, x), heads.head_weights(model)

    def loss(flat):
        return F.cross_entropy(features @ flat.view_as(w).T, y)

    hessian = torch.autograd.functional.hessian(loss, w.flatten())
    probs = F.softmax(features @ w.T, 1)
    assert torch.allclose(heads.head_hessian(probs, features), hessian, atol=1e-10)
    v = torch.randn(w.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    assert torch.allclose(heads.head_product(probs, features, v).flatten(), hessian @ v.flatten(), atol=1e-10)
    flat = w.flatten().requires_grad_()
    (gradient,) = torch.autograd.grad(loss(flat), flat)
    assert torch.allclose(heads.head_gradient(w, features, y).flatten(), gradient, atol=1e-12)
    assert torch.allclose(features @ w.T, model(x).double(), atol=1e-5)


def test_the_fitted_head_is_optimal():
    (x, y), model = problem(), linear()
    features = heads.head_inputs(model, x)
    w = heads.fit_head(heads.head_weights(model), features, y, DAMPING)
    assert (heads.head_gradient(w, features, y) + DAMPING * w).abs().max() < 1e-6
    with pytest.raises(ValueError, match="positive"):
        heads.fit_head(w, features, y, 0.0)


def test_influence_is_the_derivative_of_retraining():
    # Weight of one sample up by a little, head trained again: the validation loss moves as predicted, to 5 %.
    (x, y), val, model = problem(), problem(40, seed=3), linear()
    features, val_features = heads.head_inputs(model, x), heads.head_inputs(model, val[0])
    optimum = heads.fit_head(heads.head_weights(model), features, y, DAMPING)
    set_head(model, optimum)
    predicted = influences(model, (x, y), val, damping=DAMPING)
    rows = torch.arange(len(y)).repeat(10)
    factor = heads.head_factor(optimum, features, DAMPING)
    for i in range(5):
        losses = []
        for which in (
            torch.cat([rows, torch.tensor([i])]),
            rows[rows.new_tensor([*range(i), *range(i + 1, len(rows))])],
        ):
            # one tenth of sample i more or less; the ridge keeps its weight beside the sum over samples
            ridge = DAMPING * len(rows) / len(which)
            w = heads.fit_head(optimum, features[which], y[which], ridge, factor=factor)
            losses.append(F.cross_entropy(val_features @ w.T, val[1]))
        slope = (losses[0] - losses[1]) / (2 / len(rows))
        assert predicted[i].item() == pytest.approx(slope.item(), rel=0.05, abs=1e-5)


def test_leaving_groups_out_is_predicted():
    (x, y), val = problem(90), problem(60, seed=3)
    groups = list(torch.randperm(90, generator=torch.Generator().manual_seed(0)).split(6))
    predicted, actual = leave_out_effects(linear(), (x, y), val, groups, DAMPING)
    assert torch.corrcoef(torch.stack([predicted, actual]))[0, 1] > 0.95


def test_a_mislabelled_sample_is_harmful_and_weighs_less():
    (x, y), val, model = problem(apart=3.0), problem(60, seed=3, apart=3.0), linear()
    wrong = [0, 7, 11]
    y[wrong] = (y[wrong] + 1) % 3
    set_head(model, heads.fit_head(heads.head_weights(model), heads.head_inputs(model, x), y, DAMPING))
    for solver in ("exact", "kfac", "cg"):
        values = influences(model, (x, y), val, damping=DAMPING, solver=solver)
        assert values[wrong].min() > 0
        weights, _ = influence_weights(values)
        assert weights[wrong].mean() < weights.mean()


def test_the_network_solvers_agree_with_the_head_where_it_is_all_there_is():
    (x, y), val, model = problem(), problem(40, seed=3), linear()
    exact = influences(model, (x, y), val, damping=DAMPING)
    by_cg = influences(model, (x, y), val, damping=DAMPING, solver="cg", iterations=100)
    assert torch.allclose(exact, by_cg, rtol=1e-3, atol=1e-5)
    exact = influences(model, (x, y), val, damping=0.3)
    series = influences(model, (x, y), val, damping=0.3, solver="lissa", iterations=80)
    assert torch.corrcoef(torch.stack([exact, series]))[0, 1] > 0.99
    assert not any(p.grad is not None for p in model.parameters())


def test_large_heads_are_solved_without_a_matrix(monkeypatch):
    (x, y), model = problem(), linear()
    w, features = heads.head_weights(model), heads.head_inputs(model, x)
    vector = heads.head_gradient(w, features, y)
    dense = solve_head(w, features, DAMPING, vector)
    monkeypatch.setattr("kdbench.training.influence.DENSE", 1)
    assert torch.allclose(solve_head(w, features, DAMPING, vector), dense, rtol=1e-5)


def test_kronecker_factors_are_exact_where_the_prediction_is_the_same_everywhere():
    (x, y), model = problem(), linear()
    features, w = heads.head_inputs(model, x), torch.zeros(3, 5, dtype=torch.float64)
    vector = heads.head_gradient(w, features, y)
    exact, approximate = (solve_head(w, features, DAMPING, vector, solver) for solver in ("exact", "kfac"))
    assert torch.allclose(exact, approximate, rtol=1e-8)


@pytest.mark.parametrize("arch", ["rn(2,1)", "vit(8,1,2)"])
def test_products_of_a_network(arch):
    torch.manual_seed(0)
    model = build(arch, 3).eval()
    g = torch.Generator().manual_seed(0)
    x, y = torch.randn(8, 3, 16, 16, generator=g), torch.randint(3, (8,), generator=g)
    network = Network(model)
    size = sum(p.numel() for p in model.parameters())
    u, v = torch.randn(2, size, generator=g)
    assert torch.dot(network.product(x, u), v).item() == pytest.approx(
        torch.dot(network.product(x, v), u).item(), rel=1e-3, abs=1e-4
    )
    assert torch.dot(network.product(x, u), u) >= 0
    F.cross_entropy(model(x), y).backward()
    gradient = torch.cat([p.grad.flatten() for p in model.parameters()])
    assert torch.allclose(network.gradient(x, y), gradient, atol=1e-5)
    assert torch.allclose(network.along(x, y, v).mean(), gradient @ v, atol=1e-3)


def test_equal_influences_weigh_one_and_outliers_do_not_matter():
    weights, clipped = influence_weights(torch.full((20,), 0.3))
    assert weights.tolist() == [1.0] * 20
    assert clipped == 0
    values = torch.linspace(-1, 1, 200)
    weights, clipped = influence_weights(values)
    assert weights.max().item() == pytest.approx(math.e, rel=1e-5)
    assert weights.min().item() == pytest.approx(1 / math.e, rel=1e-5)
    assert bool((weights.diff() <= 0).all())  # more harmful, less weight
    assert 0 < clipped <= 0.03
    values[0] = -1e6
    assert influence_weights(values)[0][1:].std() > 0.5
