"""The three estimates of a KL divergence, by enumerating a vocabulary of five symbols in float64."""

from __future__ import annotations

import pytest
import torch

from kdbench.losses.divergences import fkl, rkl
from kdbench.losses.kl_estimates import LARGEST, as_reward, estimate


@pytest.fixture
def pair():
    generator = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(5, generator=generator, dtype=torch.float64) * 1.5 for _ in range(2))
    return student.requires_grad_(), teacher


def expectation(student, values):
    """Mean of a value per symbol over samples of the student, the sampling held constant."""
    return (student.softmax(-1).detach() * values).sum()


def gradient(value, student):
    return torch.autograd.grad(value, student, retain_graph=True)[0]


def both(student, teacher):
    return student.log_softmax(-1), teacher.log_softmax(-1)


def test_k1_and_k3_have_the_divergence_as_expectation_and_k2_has_not(pair):
    student, teacher = pair
    exact = rkl(student, teacher).item()
    values = {kind: expectation(student, estimate(kind, *both(*pair))).item() for kind in ("k1", "k2", "k3")}
    assert values["k1"] == pytest.approx(exact, abs=1e-14)
    assert values["k3"] == pytest.approx(exact, abs=1e-14)
    assert abs(values["k2"] - exact) > 0.01


def test_the_gradient_of_k1_as_a_loss_vanishes(pair):
    student, _ = pair
    assert gradient(expectation(student, estimate("k1", *both(*pair))), student).abs().max() < 1e-15


def test_the_gradient_of_k2_as_a_loss_is_that_of_the_reverse_divergence(pair):
    student, _ = pair
    found = gradient(expectation(student, estimate("k2", *both(*pair))), student)
    assert torch.allclose(found, gradient(rkl(*pair), student), atol=1e-14)


def test_the_gradient_of_k3_as_a_loss_is_that_of_the_forward_divergence(pair):
    student, _ = pair
    found = gradient(expectation(student, estimate("k3", *both(*pair))), student)
    assert torch.allclose(found, gradient(fkl(*pair), student), atol=1e-14)
    assert not torch.allclose(found, gradient(rkl(*pair), student), atol=1e-3)


def test_as_a_reward_the_gradient_is_that_of_the_reverse_divergence(pair):
    student, _ = pair
    found = gradient(expectation(student, as_reward(*both(*pair))), student)
    assert torch.allclose(found, gradient(rkl(*pair), student), atol=1e-14)


def test_k2_as_a_loss_and_k1_as_a_reward_agree_on_every_sample(pair):
    student, _ = pair
    for symbol in range(5):
        first = gradient(estimate("k2", *both(*pair))[symbol], student)
        assert torch.allclose(first, gradient(as_reward(*both(*pair))[symbol], student), atol=1e-15)


def test_k3_stays_finite_where_the_teacher_rules_a_token_out():
    logp, other = (
        torch.zeros(2, dtype=torch.float64, requires_grad=True),
        torch.tensor([-1e5, 1e5], dtype=torch.float64),
    )
    value = estimate("k3", logp, other)
    assert value.tolist() == pytest.approx([LARGEST - 1, torch.e**LARGEST - 1 - LARGEST], rel=1e-6)


def test_an_unknown_estimator_is_named():
    with pytest.raises(ValueError, match="not 'k4'"):
        estimate("k4", torch.zeros(1), torch.zeros(1))
