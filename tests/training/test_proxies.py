"""Scores of untrained networks: against their definitions on networks where they are known."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from kdbench.errors import UsageError
from kdbench.training import proxies


def test_naswot_counts_the_units_that_agree() -> None:
    x = torch.tensor([[1.0, 2.0], [1.0, -3.0], [-1.0, 1.0]])  # signs are the codes
    agree = torch.tensor([[2.0, 1.0, 1.0], [1.0, 2.0, 0.0], [1.0, 0.0, 2.0]])
    expected = math.log(float(torch.linalg.det(agree)))
    assert proxies.naswot(nn.ReLU(), x) == pytest.approx(expected, rel=1e-5)


def test_naswot_sees_functions_and_modules_and_adds_layers() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.act = nn.ReLU()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.relu(F.relu(self.act(x) - 1) - 1)

    x = torch.randn(3, 20, generator=torch.Generator().manual_seed(0))
    with proxies.ReluCodes() as collected:
        Twice()(x)
    assert len(collected.codes) == 3
    assert torch.equal(collected.codes[0], (x > 0).float())


def test_naswot_of_equal_samples_is_the_minimum() -> None:
    assert proxies.naswot(nn.ReLU(), torch.ones(2, 3)) == -math.inf


def test_naswot_needs_relus() -> None:
    with pytest.raises(UsageError, match="Linear has none"):
        proxies.naswot(nn.Linear(2, 2), torch.randn(3, 2))


def test_synflow_is_the_product_of_absolute_weights() -> None:
    """Of a chain of bias-free layers each layer carries the whole flow: layers x 1^T |W2| |W1| 1."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Flatten(), nn.Linear(4, 3, bias=False), nn.ReLU(), nn.Linear(3, 2, bias=False))
    flow = (model[3].weight.abs() @ model[1].weight.abs()).sum().item()
    before = model[1].weight.clone()
    assert proxies.synflow(model, (1, 2, 2)) == pytest.approx(2 * flow, rel=1e-5)
    assert torch.equal(model[1].weight, before)


def test_grad_norm_is_that_of_the_weights() -> None:
    model = nn.Linear(3, 2)
    x, y = torch.randn(5, 3), torch.tensor([0, 1, 0, 1, 1])
    F.cross_entropy(model(x), y).backward()
    expected = model.weight.grad.norm().item()
    model.zero_grad()
    assert proxies.grad_norm(model, x, y) == pytest.approx(expected, rel=1e-5)
    assert model.weight.grad is None
