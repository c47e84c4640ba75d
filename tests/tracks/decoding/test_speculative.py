"""Speculative sampling changes how much is written in a forward, and nothing of what is written."""

from __future__ import annotations

import pytest
import torch

from kdbench.errors import UsageError
from kdbench.tracks.decoding.decoders.autoregressive import Autoregressive
from kdbench.tracks.decoding.decoders.speculative import Speculative, draw, probabilities, verify
from kdbench.tracks.llm.generation import generate
from tests.helpers.causal import chi_square, exact, frequencies, llama

PROMPT = [1, 2]
MANY = 3000
OPTIONS = {"eos": -1, "pad": 0}


def sample(decoder, target, length, seed=0, temperature=1.0):
    generator = torch.Generator().manual_seed(seed)
    return decoder.decode(
        target, [PROMPT] * MANY, max_new=length, temperature=temperature, generator=generator, **OPTIONS
    )


@pytest.mark.parametrize("gamma", [1, 3])
def test_samples_are_distributed_as_those_of_the_target(target, draft, gamma):
    responses, expected = exact(target, PROMPT, 3)
    written = sample(Speculative(draft, gamma), target, 3)
    assert chi_square(frequencies(responses, written.tokens), expected) > 1e-4


def test_the_test_of_the_distribution_sees_a_wrong_rule(target, draft, monkeypatch):
    """What follows a rejection is drawn from p here, where it has to come from norm(max(p - q, 0))."""
    from kdbench.tracks.decoding.decoders import speculative

    def wrong(p, q, tokens, uniform, last, lenience=None):
        count, _ = verify(p, q, tokens, uniform, last)
        return count, draw(p[torch.arange(len(p)), count], last)

    monkeypatch.setattr(speculative, "verify", wrong)
    responses, expected = exact(target, PROMPT, 3)
    written = sample(Speculative(draft, 3), target, 3)
    assert chi_square(frequencies(responses, written.tokens), expected) < 1e-6


def test_temperature_changes_target_and_draft_alike(target, draft):
    responses, expected = exact(target, PROMPT, 2, temperature=1.7)
    written = sample(Speculative(draft, 2), target, 2, temperature=1.7)
    assert chi_square(frequencies(responses, written.tokens), expected) > 1e-4


def test_the_target_alone_samples_from_itself(target):
    responses, expected = exact(target, PROMPT, 3)
    written = sample(Autoregressive(), target, 3)
    assert chi_square(frequencies(responses, written.tokens), expected) > 1e-4
    assert written.block_efficiency == 1.0


@pytest.mark.parametrize("gamma", [1, 2, 5])
def test_greedy_decoding_is_that_of_the_target_token_for_token(gamma):
    target, draft = llama(vocabulary=24, seed=3), llama(vocabulary=24, seed=4, width=8, layers=1)
    prompts = [[1, 2, 3], [4], [5, 6, 7, 8, 9, 10], [11, 12]]
    reference = generate(target, prompts, eos=20, pad=0, max_new=40)
    for decoder in (Autoregressive(), Speculative(draft, gamma)):
        written = decoder.decode(target, prompts, max_new=40, eos=20, pad=0)
        assert written.tokens == reference.tokens
    assert all(text[-1] == 20 or len(text) == 40 for text in written.tokens)


def test_a_perfect_draft_is_always_accepted(target):
    written = Speculative(target, 4).decode(target, [PROMPT, [3]], max_new=20, **OPTIONS)
    assert written.block_efficiency == 5.0
    assert written.extra["accepted"] == written.extra["proposed"] == [16.0, 16.0]
    sampled = sample(Speculative(target, 4), target, 5)
    assert sampled.block_efficiency == pytest.approx(5.0)


def test_a_row_does_not_depend_on_the_rows_beside_it(target, draft):
    decoder, prompts = Speculative(draft, 3), [[1, 2], [3, 4, 0], [2]]
    together = decoder.decode(target, prompts, max_new=12, eos=4, pad=0)
    for prompt, text in zip(prompts, together.tokens, strict=True):
        assert decoder.decode(target, [prompt], max_new=12, eos=4, pad=0).tokens == [text]


def test_forwards_are_counted_by_row_and_in_all(target, draft):
    written = Speculative(draft, 3).decode(target, [PROMPT, [3]], max_new=10, eos=4, pad=0)
    rounds = [1 + len(text) for text in written.tokens]
    assert all(count <= most for count, most in zip(written.forwards, rounds, strict=True))
    assert written.counters["target"].forwards == max(written.forwards)
    assert written.counters["draft"].forwards == 3 * max(written.forwards)
    assert written.counters["target"].tokens == 4 * sum(written.forwards)
    assert written.counters["target"].prefill_tokens == 1


def test_a_draft_with_a_padded_embedding_proposes_only_what_the_target_knows(target):
    wide = llama(vocabulary=8, seed=5)
    written = sample(Speculative(wide, 2), target, 2)
    responses, expected = exact(target, PROMPT, 2)
    assert chi_square(frequencies(responses, written.tokens), expected) > 1e-4


def test_drawing_follows_the_distribution_and_never_gives_the_impossible():
    distribution = torch.tensor([[0.0, 0.5, 0.5, 0.0]]).double()
    assert draw(distribution, torch.tensor([0.0])).item() == 1
    assert draw(distribution, torch.tensor([0.4999])).item() == 1
    assert draw(distribution, torch.tensor([0.5001])).item() == 2
    assert draw(distribution, torch.tensor([1.0])).item() == 2
    assert draw(torch.tensor([[2.0, 6.0]]).double(), torch.tensor([0.3])).item() == 1


def test_greedy_distributions_have_all_on_one_token():
    assert probabilities(torch.tensor([[1.0, 3.0, 3.0]]), 0.0).tolist() == [[0.0, 1.0, 0.0]]


def test_where_nothing_is_left_over_the_target_itself_is_drawn_from():
    p = torch.tensor([[[0.5, 0.5], [1.0, 0.0]]]).double()
    q = p[:, :1].clone()
    count, token = verify(p, q, torch.tensor([[0]]), torch.tensor([[1.0]]).double(), torch.tensor([0.9]).double())
    assert (count.item(), token.item()) == (0, 1)


def test_bad_options_are_said(draft, target):
    with pytest.raises(UsageError, match="at least 1, not 0"):
        Speculative(draft, 0)
    with pytest.raises(ValueError, match="needs a generator"):
        Speculative(draft, 2).decode(target, [PROMPT], max_new=2, temperature=1.0, **OPTIONS)
