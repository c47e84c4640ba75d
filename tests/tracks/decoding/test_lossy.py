"""Counted acceptance against the distributions, and decoding with lenience."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from kdbench.tracks.decoding.blocks.acceptance import alpha_empirical, alpha_exact, lenience
from kdbench.tracks.decoding.decoders import speculative
from kdbench.tracks.decoding.decoders.speculative import Speculative
from tests.helpers.causal import chi_square, exact, frequencies, llama

PROMPT = [1, 0]


def sample(target, draft, *, gamma, rows, length, ease=None, seed=0):
    generator = torch.Generator().manual_seed(seed)
    decoder = Speculative(draft, gamma, ease)
    options = {"max_new": length, "eos": -1, "pad": 0, "temperature": 1.0, "generator": generator}
    return decoder.decode(target, [PROMPT] * rows, **options)


def deviation(written):
    """Counted minus expected acceptance in binomial standard errors, and the number of trials."""
    rate = alpha_empirical(written.extra["accepted"], written.extra["tested"])
    return (rate.value - sum(written.extra["expected"]) / rate.trials) / rate.error, rate.trials


# --- acceptance -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("gamma", "rows"), [(1, 450), (4, 300)])
def test_counted_acceptance_is_one_minus_the_total_variation_at_the_same_contexts(target, draft, gamma, rows):
    distance, trials = deviation(sample(target, draft, gamma=gamma, rows=rows, length=24))
    assert trials >= 5000
    assert abs(distance) < 3


def test_a_wrong_rule_of_acceptance_is_seen(target, draft, monkeypatch):
    right = speculative.verify

    def lax(p, q, tokens, uniform, last, lenience=None):
        return right(p, q, tokens, uniform**1.5, last, lenience)

    monkeypatch.setattr(speculative, "verify", lax)
    distance, _ = deviation(sample(target, draft, gamma=4, rows=300, length=24))
    assert distance > 5


def test_what_is_expected_is_the_overlap_of_the_two_distributions(target, draft):
    written = sample(target, draft, gamma=1, rows=2, length=1)
    with torch.no_grad():
        ids = torch.tensor([PROMPT])
        chance = alpha_exact(draft(ids).logits[:, -1], target(ids).logits[:, -1]).item()
    assert written.extra["expected"] == pytest.approx([chance, chance], abs=1e-6)
    assert written.extra["tested"] == [1, 1]


def test_proposals_after_the_first_rejection_or_the_end_are_not_tested(target, draft):
    written = sample(target, draft, gamma=4, rows=200, length=20)
    rejected = np.array(written.extra["tested"]) - np.array(written.extra["accepted"])
    assert (rejected >= 0).all()
    assert (rejected <= np.array(written.forwards)).all()  # at most one a round
    ended = Speculative(target, 4).decode(target, [PROMPT], max_new=30, eos=1, pad=0)
    if ended.tokens[0][-1] == 1:
        assert ended.extra["accepted"][0] <= len(ended.tokens[0])


# --- lenience ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def two():
    """A target and a draft of two tokens."""
    return llama(vocabulary=2, seed=7), llama(vocabulary=2, seed=8, width=8, layers=1)


def p_value(pair, ease):
    target, draft = pair
    written = sample(target, draft, gamma=3, rows=1500, length=4, ease=ease)
    responses, expected = exact(target, PROMPT, 4)
    return chi_square(frequencies(responses, written.tokens), expected)


def test_lenience_one_samples_from_the_target_and_less_does_not(two):
    assert p_value(two, lenience("lin", 1.0)) > 1e-4
    for name in ("lin", "sq", "exp"):
        assert p_value(two, lenience(name, 0.3)) < 1e-6


@pytest.mark.parametrize("name", ["lin", "sq", "exp"])
def test_lenience_buys_tokens_per_forward(target, draft, name):
    taus = [
        sample(target, draft, gamma=4, rows=60, length=20, ease=lenience(name, eps)).block_efficiency
        for eps in (1.0, 0.7, 0.1)
    ]
    assert taus[0] + 0.1 < taus[1] < taus[2] <= 5


def test_no_token_is_more_probable_than_linear_lenience_allows(target, draft):
    """At most p / eps (Leviathan et al. 2023, appendix A.5)."""
    rows, eps = 3000, 0.5
    written = sample(target, draft, gamma=1, rows=rows, length=1, ease=lenience("lin", eps))
    responses, p = exact(target, PROMPT, 1)
    share = frequencies(responses, written.tokens) / rows
    assert (share <= p / eps + 4 * math.sqrt(0.25 / rows)).all()
    assert np.abs(share - p).max() > 0.02  # it is another distribution
