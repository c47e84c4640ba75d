"""Jacobi decoding of real networks: the text is that of token-by-token decoding, bit for bit."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from kdbench.tracks.decoding.blocks import guesses
from kdbench.tracks.decoding.blocks.guesses import Window
from kdbench.tracks.decoding.decoders.autoregressive import Autoregressive
from kdbench.tracks.decoding.decoders.base import Decoder
from kdbench.tracks.decoding.decoders.jacobi import Jacobi, JacobiModel, jacobi
from tests.helpers.causal import gpt2, llama

LIMITS = {"max_new": 16, "eos": 4, "pad": 0}
WINDOWS = [Window(4, 1, 0.85, 0), Window(4, 1, 0.85, 4), Window(4, 2, 0.5, 0), Window(5, 3, 0.3, 4)]


def prompts(count=6, vocabulary=12):
    generator = torch.Generator().manual_seed(3)
    lengths = torch.randint(1, 7, (count,), generator=generator).tolist()
    return [torch.randint(5, vocabulary, (length,), generator=generator).tolist() for length in lengths]


def by_hand(model, prompt, max_new, eos):
    """Greedy decoding with a whole forward for each token."""
    text = list(prompt)
    while len(text) < len(prompt) + max_new and text[len(prompt) :][-1:] != [eos]:
        with torch.no_grad():
            text.append(int(model(torch.tensor([text])).logits[0, -1].argmax()))
    return text[len(prompt) :]


@pytest.fixture(scope="module", params=[llama, gpt2], ids=["llama", "gpt2"])
def model(request):
    return request.param(vocabulary=12, seed=3)


@pytest.fixture(scope="module")
def greedy(model):
    return [by_hand(model, prompt, LIMITS["max_new"], LIMITS["eos"]) for prompt in prompts()]


@pytest.mark.parametrize("window", WINDOWS, ids=str)
def test_greedy_text_is_that_of_token_by_token_decoding(model, greedy, window):
    written = Jacobi(window).decode(model, prompts(), **LIMITS)
    assert written.tokens == greedy
    assert all(count <= len(text) for count, text in zip(written.forwards, greedy, strict=True))
    assert written.block_efficiency > 1.1
    assert any(4 in text for text in greedy) or max(map(len, greedy)) == 16


def test_a_rule_that_takes_one_token_too_many_is_noticed(model, greedy, monkeypatch):
    right = guesses.agreement
    monkeypatch.setattr(guesses, "agreement", lambda one, other: min(right(one, other) + 1, len(one)))
    assert Jacobi(WINDOWS[0]).decode(model, prompts(), **LIMITS).tokens != greedy


@pytest.mark.parametrize("window", WINDOWS, ids=str)
def test_samples_are_those_of_the_model_alone_with_the_same_numbers(model, window):
    def sample(decoder):
        generator = torch.Generator().manual_seed(11)
        return decoder.decode(model, prompts(), temperature=1.3, generator=generator, **LIMITS)

    alone, written = sample(Autoregressive()), sample(Jacobi(window))
    assert written.tokens == alone.tokens
    assert len({tuple(text) for text in alone.tokens}) > 3
    assert sum(written.forwards) <= sum(alone.forwards)


def test_what_a_row_gets_and_costs_does_not_depend_on_the_others(model):
    together = Jacobi(WINDOWS[3]).decode(model, prompts(), **LIMITS)
    apart = [Jacobi(WINDOWS[3]).decode(model, [prompt], **LIMITS) for prompt in prompts()]
    assert together.tokens == [one.tokens[0] for one in apart]
    assert together.forwards == [one.forwards[0] for one in apart]
    assert together.extra["recycled"] == [one.extra["recycled"][0] for one in apart]


def test_counts(model, greedy):
    written = Jacobi(WINDOWS[3]).decode(model, prompts(), **LIMITS)
    assert written.extra["blocks"] == [-(-len(text) // 5) for text in greedy]
    assert sum(written.extra["recycled"]) > 0 or model.config.model_type == "llama"  # which repeats itself too well
    assert sum(written.extra["spawned"]) > 0
    counter = written.counters["target"]
    assert counter.forwards == max(written.forwards)
    assert counter.prefill_tokens == sum(len(prompt) - 1 for prompt in prompts())
    assert counter.tokens >= sum(len(text) for text in greedy)


def test_the_mode_of_the_model_comes_back(model):
    model.train()
    Jacobi(WINDOWS[0]).decode(model, [[5, 6]], **LIMITS)
    assert model.training
    model.eval()


def test_sampling_needs_a_generator(model):
    with pytest.raises(ValueError, match="generator"):
        jacobi(model, [[5]], WINDOWS[0], temperature=1.0, **LIMITS)


def test_a_model_of_its_own_writes_in_place_of_the_target(model):
    other = llama(vocabulary=12, seed=9)
    decoder = JacobiModel(other, WINDOWS[3])
    assert (
        decoder.decode(model, prompts(3), **LIMITS).tokens
        == Jacobi(WINDOWS[3]).decode(other, prompts(3), **LIMITS).tokens
    )
    assert decoder.own_target
    assert not Jacobi().own_target
    assert decoder.networks() == {"model": other}
    assert Jacobi().networks() == {}
    wider = decoder.with_window(replace(WINDOWS[3], block=7))
    assert wider.model is other
    assert wider.window.block == 7


def test_decoders_are_read_as_they_were_saved(tmp_path):
    class Task:
        def load_network(self, folder):
            from transformers import AutoModelForCausalLM

            return AutoModelForCausalLM.from_pretrained(folder).eval()

    window = Window(5, 3, 0.25, 2)
    own = JacobiModel(llama(vocabulary=12, seed=9), window)
    for decoder in (Jacobi(window), own):
        folder = tmp_path / decoder.kind
        decoder.save(folder)
        again = Decoder.of_kind(decoder.kind).load(folder, Task())
        assert type(again) is type(decoder)
        assert again.window == window
        target = llama(vocabulary=12, seed=3)
        assert again.decode(target, prompts(3), **LIMITS).tokens == decoder.decode(target, prompts(3), **LIMITS).tokens
