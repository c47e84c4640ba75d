"""Divergences of "this" and "anything else": where they are least, and their limits."""

from __future__ import annotations

import pytest
import torch

from kdbench.losses.binarised import BINARISED, binary_ce, temperature_limit


@pytest.mark.parametrize("name", BINARISED)
@pytest.mark.parametrize("tau", [1.0, 100.0])
def test_each_divergence_is_least_where_the_likelihoods_agree(name, tau):
    teacher = torch.tensor([-0.01, -0.7, -5.0, -40.0])
    least = BINARISED[name](teacher, teacher, tau)
    for factor in (0.5, 0.9, 1.2, 3.0):
        assert (BINARISED[name](teacher, teacher * factor, tau) >= least - 1e-6).all()
    assert (BINARISED[name](teacher, teacher * 3, tau) > least).any()


def test_a_certain_chunk_has_finite_gradients():
    for name, compare in BINARISED.items():
        student = torch.tensor([0.0, -1e-9, -200.0], requires_grad=True)
        compare(torch.tensor([0.0, -3.0, -1e-9]), student, 1.0).sum().backward()
        assert student.grad.isfinite().all(), name


def test_the_limit_of_high_temperatures():
    teacher, student = torch.tensor([-1.0, -4.0], dtype=torch.float64), torch.tensor([-2.5, -3.0], dtype=torch.float64)
    tau = 200.0
    divergence = binary_ce(teacher, student, tau) - binary_ce(teacher, teacher, tau)
    assert torch.allclose(tau * divergence, temperature_limit(teacher, student, tau), rtol=0.02)
