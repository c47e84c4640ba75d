"""Decoding: the cache changes nothing, truncation keeps what it should, rollouts are scored where they should be."""

from __future__ import annotations

import pytest
import torch

from kdbench.tracks.llm.generation import Prompts, as_batch, filter_logits, generate, left_pad
from kdbench.tracks.llm.networks import models, tokenizers
from kdbench.tracks.llm.spec import Net

TOKENIZER = tokenizers.wrap(tokenizers.train(["some words to learn merges from"] * 5, 280))
PROMPTS = [[1, 40, 41], [1, 50], [1, 60, 61, 62, 63, 64, 65], [1, 70, 71]]


def network(family: str = "llama", seed: int = 0):
    torch.manual_seed(seed)
    model = models.build(Net(family=family, layers=2, width=16, heads=2), TOKENIZER)
    with torch.no_grad():  # sharpen, so that greedy choices are far from ties
        model.get_output_embeddings().weight.mul_(20)
    return model.eval()


@torch.no_grad()
def one_by_one(model, prompt: list[int], max_new: int, eos: int) -> list[int]:
    """Greedy decoding with nothing remembered: a whole forward per token."""
    row = list(prompt)
    for _ in range(max_new):
        row.append(int(model(input_ids=torch.tensor([row])).logits[0, -1].argmax()))
        if row[-1] == eos:
            break
    return row[len(prompt) :]


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_batched_decoding_with_a_cache_is_decoding_alone_without(family: str):
    model = network(family)
    # an end token that some rows reach early and others never: rows leave the batch meanwhile
    alone = [one_by_one(model, prompt, 12, eos=-1) for prompt in PROMPTS]
    eos = alone[0][2]
    together = generate(model, PROMPTS, eos=eos, pad=0, max_new=12)
    assert together.tokens == [one_by_one(model, prompt, 12, eos) for prompt in PROMPTS]
    assert len(together.tokens[0]) <= 3


def test_log_probabilities_are_those_of_a_teacher_forced_pass():
    model = network()
    generator = torch.Generator().manual_seed(3)
    responses = generate(model, PROMPTS, eos=2, pad=0, max_new=6, temperature=0.7, top_p=0.8, generator=generator)
    batch = as_batch(Prompts(PROMPTS, torch.arange(4)), responses, pad=0)
    with torch.no_grad():
        nll = models.token_nll(models.scored_logits(model, batch), models.targets_of(batch))
    assert torch.allclose(-nll, batch.logprobs[:, 1:][batch.scored], atol=1e-4)
    assert int(batch.scored.sum()) == responses.generated
    assert (batch.index == -1).all()


def test_sampling_repeats_with_its_generator_and_follows_the_distribution():
    model = network(seed=1)

    def sample(seed: int) -> list[list[int]]:
        generator = torch.Generator().manual_seed(seed)
        return generate(model, [[1, 40]] * 4000, eos=2, pad=0, max_new=1, temperature=1.0, generator=generator).tokens

    first = sample(0)
    assert first == sample(0) != sample(1)
    with torch.no_grad():
        expected = model(input_ids=torch.tensor([[1, 40]])).logits[0, -1].softmax(-1)
    seen = torch.bincount(torch.tensor(first).flatten(), minlength=len(expected)) / 4000
    assert (seen - expected).abs().max() < 0.03
    assert not (seen[expected < 1e-9] > 0).any()


def test_filters_keep_the_most_probable_tokens():
    logits = torch.tensor([[0.5, 0.3, 0.15, 0.05]]).log()
    assert torch.isfinite(filter_logits(logits, 2, 1.0)).tolist() == [[True, True, False, False]]
    assert torch.isfinite(filter_logits(logits, 0, 0.6)).tolist() == [[True, True, False, False]]
    assert torch.isfinite(filter_logits(logits, 0, 0.01)).tolist() == [[True, False, False, False]]
    assert torch.equal(filter_logits(logits, 0, 1.0), logits)


def test_left_padding():
    ids, mask = left_pad([[1, 2], [3]], pad=9)
    assert ids.tolist() == [[1, 2], [9, 3]]
    assert mask.tolist() == [[1, 1], [0, 1]]


def test_sampling_needs_a_generator():
    with pytest.raises(ValueError, match="generator"):
        generate(network(), PROMPTS, eos=2, pad=0, max_new=1, temperature=1.0)


def test_the_training_mode_comes_back():
    model = network().train()
    generate(model, PROMPTS, eos=2, pad=0, max_new=1)
    assert model.training
