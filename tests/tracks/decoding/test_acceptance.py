"""Acceptance of proposals: the identity behind it, what it predicts, and lossy acceptance."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kdbench.errors import UsageError
from kdbench.losses.divergences import tvd
from kdbench.tracks.decoding.blocks import acceptance as a


def logits(*shape: int, seed: int = 0) -> torch.Tensor:
    return 2 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


DRAFT, TARGET = logits(50, 7), logits(50, 7, seed=1)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_the_chance_to_accept_is_one_minus_the_total_variation(temperature):
    chance = a.alpha_exact(DRAFT, TARGET, temperature=temperature)
    distance = tvd(DRAFT, TARGET, temperature=temperature, scale_t2=False)
    assert torch.allclose(chance, 1 - distance, atol=1e-6)
    p, q = (TARGET / temperature).softmax(-1), (DRAFT / temperature).softmax(-1)
    assert torch.allclose(chance, (q * (p / q).clamp_max(1)).sum(-1), atol=1e-6)


def test_a_draft_that_is_the_target_is_always_accepted_and_one_of_other_tokens_never():
    assert torch.allclose(a.alpha_exact(TARGET, TARGET), torch.ones(50))
    apart = torch.tensor([[0.0, -math.inf]]), torch.tensor([[-math.inf, 0.0]])
    assert a.alpha_exact(*apart).item() == 0


def test_greedy_acceptance_compares_the_most_probable_tokens():
    chance = a.alpha_exact(DRAFT, TARGET, temperature=0)
    assert torch.equal(chance.bool(), DRAFT.argmax(-1) == TARGET.argmax(-1))
    assert 0 < chance.mean() < 1


@given(alpha=st.floats(0, 0.99), gamma=st.integers(0, 12))
def test_expected_tokens_are_those_of_the_geometric_series(alpha, gamma):
    assert a.expected_tau(alpha, gamma) == pytest.approx((1 - alpha ** (gamma + 1)) / (1 - alpha))


def test_expected_tokens_are_what_independent_acceptance_gives():
    rng = np.random.default_rng(0)
    accepted = (rng.random((20000, 5)) < 0.7).cumprod(axis=1).sum(axis=1)
    error = accepted.std() / math.sqrt(20000)
    assert abs((accepted + 1).mean() - a.expected_tau(0.7, 5)) < 4 * error


def test_ends_of_the_expectation():
    assert a.expected_tau(1.0, 5) == 6
    assert a.expected_tau(0.0, 5) == 1
    assert a.expected_speedup(1.0, 5, 0.2) == 3
    assert a.expected_speedup(0.0, 5, 0.2) == 0.5  # proposals that are never taken only cost


def test_impossible_chances_are_refused():
    for alpha, gamma in ((1.5, 3), (-0.1, 3), (0.5, -1)):
        with pytest.raises(ValueError, match=r"alpha is|gamma is"):
            a.expected_tau(alpha, gamma)


def test_the_empirical_rate_has_a_binomial_error():
    rate = a.alpha_empirical([30, 45], [40, 60])
    assert rate.value == 0.75
    assert rate.error == pytest.approx(math.sqrt(0.75 * 0.25 / 100))
    assert (a.Rate(0, 0).value, a.Rate(0, 0).error) == (0.0, math.inf)


@pytest.mark.parametrize("name", sorted(a.LENIENCE))
def test_lenience_one_is_lossless_and_less_only_accepts_more(name):
    assert a.lenience(name, 1.0) is None
    for full in (1.0, 0.999999):
        function = a.LENIENCE[name]
        assert torch.allclose(function(TARGET.softmax(-1), full), TARGET.softmax(-1), atol=1e-4)
    chances = [a.alpha_exact(DRAFT, TARGET, lenience=a.lenience(name, eps)) for eps in (1.0, 0.6, 0.3, 0.1)]
    for strict, lenient in itertools.pairwise(chances):
        assert (lenient >= strict - 1e-6).all()
        assert lenient.mean() > strict.mean() + 0.01
    assert (chances[-1] <= 1).all()


def test_lenience_functions_are_those_of_the_paper():
    p = torch.tensor([0.0, 0.04, 0.25, 1.0])
    assert torch.allclose(a.lenience("lin", 0.5)(p), torch.tensor([0.0, 0.08, 0.5, 2.0]))
    assert torch.allclose(a.lenience("sq", 0.5)(p), torch.tensor([0.0, 0.16, 1.0, 4.0]))
    assert torch.allclose(a.lenience("exp", 0.5)(p), torch.tensor([0.0, 0.2, 0.5, 1.0]))


@pytest.mark.parametrize(("name", "eps"), [("cubic", 0.5), ("lin", 0.0), ("lin", 1.5)])
def test_bad_lenience_is_a_usage_error(name, eps):
    with pytest.raises(UsageError, match="lenience"):
        a.lenience(name, eps)
