"""Policy-gradient reverse KL, the decay of ImitKD, and the adversarial temperature of CTKD."""

from __future__ import annotations

import itertools

import pytest
import torch

from kdbench.losses import divergences as d
from kdbench_methods.llm.ctkd import LearnedTemperature, reversal_strength
from kdbench_methods.llm.imitkd import own_share
from kdbench_methods.llm.minillm import future_rewards, policy_gradient_loss

V, T = 3, 3


def tables(seed: int) -> list[torch.Tensor]:
    """Logits of every step for every prefix: a language model of T tokens over V words, by full enumeration."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(*[V] * (t + 1), generator=generator, dtype=torch.float64) for t in range(T)]


def along(model: list[torch.Tensor], y: tuple[int, ...]) -> torch.Tensor:
    """Logits (T, V) along one sequence."""
    return torch.stack([table[y[:t]] for t, table in enumerate(model)])


def log_probability(model: list[torch.Tensor], y: tuple[int, ...]) -> torch.Tensor:
    return along(model, y).log_softmax(-1)[torch.arange(T), list(y)].sum()


def test_the_surrogate_has_the_gradient_of_the_divergence_of_whole_sequences():
    """Expectation over all sequences, against autograd through the exact sum q(y) (log q(y) - log p(y))."""
    teacher = tables(1)
    sequences = list(itertools.product(range(V), repeat=T))

    exact = [table.requires_grad_() for table in tables(0)]
    divergence = torch.stack(
        [log_probability(exact, y).exp() * (log_probability(exact, y) - log_probability(teacher, y)) for y in sequences]
    ).sum()
    divergence.backward()

    def expected_gradient(**options):
        student = [table.requires_grad_() for table in tables(0)]
        total = torch.zeros((), dtype=torch.float64)
        for y in sequences:
            weight = log_probability(student, y).exp().detach()
            each = policy_gradient_loss(
                along(student, y),
                along(teacher, y),
                torch.tensor(y),
                torch.zeros(T, dtype=torch.long),
                length_normalised=False,
                **options,
            )
            total = total + weight * each.sum()
        total.backward()
        return [table.grad for table in student]

    for mine, true in zip(expected_gradient(baseline=False), exact, strict=True):
        assert torch.allclose(mine, true.grad)
    without_future = expected_gradient(baseline=False, long_term=0.0)
    assert not all(torch.allclose(mine, true.grad) for mine, true in zip(without_future, exact, strict=True))
    assert torch.allclose(without_future[-1], exact[-1].grad)  # nothing follows the last token


def test_without_the_future_it_is_token_level_reverse_kl():
    student, teacher = torch.randn(6, 5), torch.randn(6, 5)
    value = policy_gradient_loss(student, teacher, torch.zeros(6, dtype=torch.long), torch.zeros(6), long_term=0.0)
    assert torch.equal(value, d.rkl(student, teacher))


def test_future_rewards_stay_within_their_sequence():
    rewards, sequence = torch.tensor([1.0, 2.0, 4.0, 8.0, 16.0]), torch.tensor([0, 0, 0, 1, 1])
    assert future_rewards(rewards, sequence, length_normalised=False).tolist() == [6, 4, 0, 16, 0]
    assert future_rewards(rewards, sequence).tolist() == [3, 4, 0, 16, 0]


def test_a_student_that_equals_its_teacher_has_nothing_to_gain():
    same = torch.randn(6, 5, requires_grad=True)
    value = policy_gradient_loss(same, same.detach(), torch.tensor([0, 1, 2, 3, 4, 0]), torch.zeros(6))
    value.sum().backward()
    assert same.grad.abs().max() < 1e-6


def test_imitkd_starts_with_the_data_and_decays_exponentially():
    shares = [own_share(step, 101, 0.005) for step in range(101)]
    assert shares[0] == 0
    assert shares[-1] == pytest.approx(0.995)
    kept = [1 - share for share in shares]
    assert all(b / a == pytest.approx(0.005**0.01) for a, b in itertools.pairwise(kept))
    assert own_share(0, 1, 0.005) == 0


def test_the_temperature_of_ctkd_climbs_while_the_student_descends():
    temperature = LearnedTemperature(1.0, 20.0, 0.0)
    student = torch.tensor([[1.0, 0.0, -1.0]], requires_grad=True)
    teacher = torch.tensor([[0.0, 2.0, -1.0]])

    def gradient(strength):
        temperature.zero_grad()
        d.fkl(student, teacher, temperature=temperature(strength)).sum().backward()
        return temperature.theta.grad.item()

    plain = gradient(-1.0)  # without reversal
    assert plain != 0
    assert gradient(1.0) == pytest.approx(-plain)
    assert gradient(0.25) == pytest.approx(-plain / 4)
    assert gradient(0.0) == 0


def test_the_temperature_stays_in_its_range():
    for start in (-50.0, 0.0, 50.0):
        assert 1.0 <= LearnedTemperature(1.0, 20.0, start)(1.0).item() <= 21.0


def test_the_reversal_grows_along_a_cosine():
    assert reversal_strength(0, 1.0, 0.5) == 0
    assert reversal_strength(0.25, 1.0, 0.5) == pytest.approx(0.5)
    assert reversal_strength(0.5, 1.0, 0.5) == reversal_strength(1.0, 1.0, 0.5) == 1.0
