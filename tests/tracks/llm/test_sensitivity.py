"""Gradients in embeddings, surprise, and attention, against what they must be."""

from __future__ import annotations

import pytest
import torch

from kdbench.tracks.llm.blocks.sensitivity import attention_mass, input_grad_norms, surprise
from kdbench.tracks.llm.data.encoding import encode_pairs
from kdbench.tracks.llm.networks import models
from kdbench.tracks.llm.networks.tokenizers import SIZES, train, wrap
from kdbench.tracks.llm.spec import Net


@pytest.fixture(scope="module")
def tokenizer():
    return wrap(train([], SIZES["bytes"]))


@pytest.fixture(params=["llama", "gpt2"])
def model(request, tokenizer):
    torch.manual_seed(0)
    return models.build(Net(family=request.param, layers=2, width=16, heads=2), tokenizer).eval()


@pytest.fixture
def batch(tokenizer):
    sequences, _ = encode_pairs(["ask me", "hi, you there"], ["yes", "n"], tokenizer, 64)
    return sequences.batch(torch.arange(2), "")


def answer_loss(model, row, embeds):
    """In float64, for differences."""
    log_q = models.scored_logits(model, row, embeds).log_softmax(-1)
    return -log_q.gather(1, models.targets_of(row)[:, None]).sum()


def test_the_norm_is_the_steepest_slope_of_the_loss(model, batch):
    model.double()
    row = batch.rows(torch.tensor([0]))
    norms = input_grad_norms(model, row)[0]
    embeds = model.get_input_embeddings()(row.input_ids).detach()
    for position in (1, 4, 6):
        moved = embeds.clone().requires_grad_()
        (slope,) = torch.autograd.grad(answer_loss(model, row, moved), moved)
        step = torch.zeros_like(embeds)
        step[0, position] = 1e-4 * slope[0, position] / slope[0, position].norm()
        with torch.no_grad():
            rise = answer_loss(model, row, embeds + step) - answer_loss(model, row, embeds - step)
        assert norms[position].item() == pytest.approx(float(rise) / 2e-4, rel=2e-3)  # norms are in float32


def test_rows_of_a_batch_do_not_mix_and_weights_get_no_gradient(model, batch):
    both = input_grad_norms(model, batch)
    for i in range(2):
        alone = batch.rows(torch.tensor([i]))
        length = int(alone.attention_mask.sum())
        assert torch.allclose(both[i], input_grad_norms(model, alone)[0], atol=1e-5)
        assert (both[i, length - 1 :] == 0).all()  # nothing is predicted from the last token and from padding
        assert (both[i, : length - 1] > 0).all()
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_frozen_model_has_gradients_in_its_input(model, batch):
    expected = input_grad_norms(model, batch)
    model.requires_grad_(False)
    with torch.no_grad():
        assert torch.equal(input_grad_norms(model, batch), expected)


def test_surprise_at_scored_tokens_is_their_loss(model, batch):
    values = surprise(model, batch)
    scored = torch.nn.functional.pad(batch.scored, (1, 0))
    nll = models.token_nll(models.scored_logits(model, batch), models.targets_of(batch))
    assert torch.allclose(values[scored], nll, atol=1e-5)
    assert (values[:, 0] == 0).all()
    assert (values[batch.attention_mask == 0] == 0).all()


def test_attention_adds_up_to_one_and_the_implementation_stays(model, batch):
    before = model.config._attn_implementation
    everything = torch.ones_like(batch.input_ids, dtype=torch.bool)
    part = torch.arange(batch.input_ids.shape[1]).expand_as(everything) < 4
    assert torch.allclose(attention_mass(model, batch, everything), torch.ones(2), atol=1e-5)
    shares = attention_mass(model, batch, part) + attention_mass(model, batch, ~part)
    assert torch.allclose(shares, torch.ones(2), atol=1e-5)
    assert model.config._attn_implementation == before


def test_a_model_that_looks_everywhere_alike_has_the_mass_of_the_count(tokenizer, batch):
    model = models.build(Net(layers=1, width=16, heads=2), tokenizer).eval()
    with torch.no_grad():
        model.model.layers[0].self_attn.q_proj.weight.zero_()
    row, where = batch.rows(torch.tensor([0])), torch.zeros(1, batch.input_ids.shape[1], dtype=torch.bool)
    where[0, 2:5] = True
    places = row.scored[0].nonzero()[:, 0]
    expected = (3 / (places + 1.0)).mean()  # three tokens among the t + 1 that position t sees
    assert attention_mass(model, row, where[:, : row.input_ids.shape[1]]).item() == pytest.approx(float(expected))
