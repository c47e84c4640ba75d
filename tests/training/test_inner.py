"""The inner step: what it changes, and what gradients go through it."""

import pytest
import torch
from torch import nn

from kdbench.training.inner import call_with, inner_step


def quadratic(second_order, lr=0.1):
    """theta' = theta - lr * 2 (theta - phi), outer loss = theta'^2 / 2, in closed form."""
    theta = torch.tensor([3.0], dtype=torch.float64, requires_grad=True)
    phi = torch.tensor([1.0], dtype=torch.float64, requires_grad=True)
    moved = inner_step({"theta": theta}, ((theta - phi) ** 2).sum(), lr, second_order=second_order)["theta"]
    return moved, torch.autograd.grad((moved**2 / 2).sum(), [theta, phi], allow_unused=True)


def test_gradients_through_the_step_are_exact():
    moved, (theta, phi) = quadratic(True)
    assert moved.item() == pytest.approx(3 - 0.1 * 2 * 2)
    assert theta.item() == pytest.approx(2.6 * (1 - 0.2))
    assert phi.item() == pytest.approx(2.6 * 0.2)


def test_to_first_order_the_inner_gradient_is_a_constant():
    moved, (theta, phi) = quadratic(False)
    assert moved.item() == pytest.approx(2.6)
    assert theta.item() == pytest.approx(2.6)
    assert phi is None


def test_the_module_keeps_its_parameters_and_the_call_takes_the_given_ones():
    module = nn.Linear(2, 2)
    before = {name: value.detach().clone() for name, value in module.named_parameters()}
    x = torch.randn(3, 2)
    out = call_with(module, {"weight": torch.zeros(2, 2)}, lambda net, x: net(x) + 1, x)
    assert torch.allclose(out, module.bias.expand(3, 2) + 1)
    assert all(torch.equal(value, before[name]) for name, value in module.named_parameters())


def test_parameters_that_the_loss_does_not_depend_on_stay():
    used, unused = torch.ones(1, requires_grad=True), torch.ones(1, requires_grad=True)
    moved = inner_step({"used": used, "unused": unused}, (used**2).sum(), 0.5)
    assert moved["unused"] is unused
    assert moved["used"].item() == 0
