"""Encoder-decoders and the rows they read: what precedes what, the cache, padding, and that the track takes them."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from kdbench.errors import JobError, UsageError
from kdbench.losses.tokens import IGNORE
from kdbench.task import count_parameters
from kdbench.tracks.llm.blocks.pairs import causal_logits, split_rows
from kdbench.tracks.llm.data.encoding import TextBatch, pack
from kdbench.tracks.llm.generation import Prompts, as_batch, generate, left_pad
from kdbench.tracks.llm.latency import writing_cost
from kdbench.tracks.llm.networks import encoder_decoder, models, tokenizers
from kdbench.tracks.llm.networks.shapes import Shape, build, matched, split_layers

TOKENIZER = tokenizers.wrap(tokenizers.train(["some words to learn merges from"] * 5, 280))
PROMPTS = [[1, 40, 41], [1, 50], [1, 60, 61, 62, 63, 64, 65], [1, 70, 71]]
SHAPE = Shape(encoder_layers=2, decoder_layers=2, width=16, heads=4, key_heads=2, mlp=24)


def network(seed: int = 0) -> encoder_decoder.EncoderDecoder:
    torch.manual_seed(seed)
    model = build(SHAPE, TOKENIZER)
    with torch.no_grad():  # sharpen, so that greedy choices are far from ties
        for parameter in model.parameters():
            parameter.mul_(1 if parameter.ndim == 1 else 5)
    return model.eval()


@pytest.fixture
def batch() -> TextBatch:
    rows = [[1, 40, 41, 42, 2], [1, 50, 2], [1, 60, 61, 62, 63, 64, 65, 66, 2]]
    return pack(rows, [3, 2, 6], 0).batch(torch.arange(3))


class Copier(nn.Module):
    """Says at every position which token stands there."""

    def forward(self, input_ids, logits_to_keep, **_):
        return SimpleNamespace(logits=nn.functional.one_hot(input_ids, 300).float()[:, -logits_to_keep:])


def test_rows_are_cut_at_their_first_scored_token(batch):
    pairs = split_rows(batch)
    assert pairs.source.tolist() == [[1, 1, 1, 1, 40, 41], [1, 1, 1, 1, 1, 50], [1, 60, 61, 62, 63, 64]]
    assert pairs.source_mask.sum(1).tolist() == [3, 2, 6]
    assert [row[mask].tolist() for row, mask in zip(pairs.target, pairs.target_mask.bool(), strict=True)] == [
        [42, 2],
        [2],
        [65, 66, 2],
    ]
    assert torch.equal(pairs.target[pairs.scored], models.targets_of(batch))


def test_the_teacher_slice_is_not_off_by_one(batch):
    """A teacher that copies says the token before each target: the last of the source, then the target itself."""
    said = causal_logits(Copier(), split_rows(batch)).argmax(-1)
    assert said.tolist() == [41, 42, 50, 64, 65, 66]


def test_the_student_slice_is_not_off_by_one(batch):
    """Prediction j does not see token j of the target or later ones, and does see the one before and the source."""
    model = network()

    def with_token(row: int, place: int) -> torch.Tensor:
        ids = batch.input_ids.clone()
        ids[row, place] = 99
        with torch.no_grad():
            logits = models.scored_logits(model, TextBatch(ids, batch.attention_mask, batch.labels, batch.index))
        return (logits - plain).abs().amax(-1) > 1e-6

    with torch.no_grad():
        plain = models.scored_logits(model, batch)
    assert with_token(2, 6).tolist() == [False, False, False, False, True, True]  # token 65, which logits 3 predict
    assert with_token(2, 8).tolist() == [False] * 6  # the end is predicted and never read
    assert with_token(2, 1).tolist() == [False, False, False, True, True, True]


def test_tokens_in_the_middle_that_are_not_scored_are_read_and_not_predicted(batch):
    labels = batch.labels.clone()
    labels[2, 7] = IGNORE
    some = TextBatch(batch.input_ids, batch.attention_mask, labels, batch.index)
    model = network()
    with torch.no_grad():
        kept = models.scored_logits(model, batch)[[0, 1, 2, 3, 5]]
        torch.testing.assert_close(models.scored_logits(model, some), kept)


def test_plain_text_is_written_from_the_start_token():
    text = pack([[1, 40, 41, 42]], [1], 0).batch(torch.arange(1))
    pairs = split_rows(text)
    assert pairs.source.tolist() == [[1]]
    assert pairs.decoder_inputs(1).tolist() == [[1, 40, 41]]


def test_padding_and_the_origin_of_positions_change_nothing(monkeypatch):
    """Rotary positions are relative: centring them keeps angles small and the network the same."""
    model = network()
    ids, mask = left_pad(PROMPTS, 0)
    with torch.no_grad():
        together = model.encode(ids, mask)
        for row, prompt in zip(together, PROMPTS, strict=True):
            torch.testing.assert_close(
                row[-len(prompt) :], model.encode(torch.tensor([prompt]))[0], atol=1e-4, rtol=1e-3
            )
        monkeypatch.setattr(encoder_decoder, "centred_positions", lambda mask: (mask.cumsum(1) - 1).clamp(min=0))
        plain = model.encode(ids, mask)
    torch.testing.assert_close(plain[mask.bool()], together[mask.bool()], atol=1e-4, rtol=1e-3)


def test_centred_positions_have_their_middle_at_zero():
    mask = torch.tensor([[0, 1, 1, 1], [1, 1, 1, 1]])
    positions = encoder_decoder.centred_positions(mask)
    assert positions[0, 1:].tolist() == [-1, 0, 1]
    assert positions[1].tolist() == [-1, 0, 1, 2]


def test_the_encoder_sees_both_ways_and_the_source_is_not_empty():
    model = network()
    with torch.no_grad():
        a, b = (model.encode(torch.tensor([[1, 40, last]])) for last in (41, 42))
    assert (a[0, 0] - b[0, 0]).abs().max() > 1e-6


@torch.no_grad()
def one_by_one(model, prompt: list[int], max_new: int, eos: int) -> list[int]:
    """Greedy decoding with nothing remembered: both parts anew for every token."""
    written = [1]
    for _ in range(max_new):
        logits = model(input_ids=torch.tensor([prompt]), decoder_input_ids=torch.tensor([written])).logits
        written.append(int(logits[0, -1].argmax()))
        if written[-1] == eos:
            break
    return written[1:]


def test_batched_decoding_with_a_cache_is_decoding_alone_without():
    model = network()
    eos = one_by_one(model, PROMPTS[0], 12, eos=-1)[2]
    together = generate(model, PROMPTS, eos=eos, pad=0, max_new=12)
    assert together.tokens == [one_by_one(model, prompt, 12, eos) for prompt in PROMPTS]


def test_log_probabilities_are_those_of_a_teacher_forced_pass():
    model = network()
    generator = torch.Generator().manual_seed(3)
    responses = generate(model, PROMPTS, eos=2, pad=0, max_new=6, temperature=0.9, top_k=128, generator=generator)
    rows = as_batch(Prompts(PROMPTS, torch.arange(4)), responses, pad=0)
    with torch.no_grad():
        nll = models.token_nll(models.scored_logits(model, rows), models.targets_of(rows))
    assert torch.allclose(-nll, rows.logprobs[:, 1:][rows.scored], atol=1e-4)


def test_transformers_generates_the_same():
    model = network()
    ids, mask = left_pad(PROMPTS, 0)
    theirs = model.generate(input_ids=ids, attention_mask=mask, max_new_tokens=6, do_sample=False, eos_token_id=None)
    ours = generate(model, PROMPTS, eos=-1, pad=0, max_new=6)
    assert theirs[:, 1:].tolist() == ours.tokens


def test_embeddings_do_not_stand_in_for_tokens(batch):
    with pytest.raises(JobError, match="reads tokens"):
        models.scored_logits(network(), batch, torch.zeros(1))


def test_the_track_saves_loads_validates_and_asks_the_harness(make_task, tmp_path):
    from kdbench.tracks.llm.harness import Adapter

    task = make_task("instruct")
    with task.seeded("init"):
        model = build(SHAPE, task.tokenizer)
    task.save(model, tmp_path / "model")
    again = task.load(tmp_path / "model")
    assert type(again) is type(model)
    assert task.validate(again) == task.validate(model.eval())
    adapter = Adapter(model, task.tokenizer, 4, 8)
    (value, _), (other, _) = adapter._score([[40, 41], [40, 42]], [[50, 51], [50, 51]])
    assert value < 0
    assert value != other  # the source matters
    row = pack([[1, 40, 41, 50, 51]], [3], 0).batch(torch.arange(1))
    with torch.no_grad():
        nll = models.token_nll(models.scored_logits(model, row), models.targets_of(row))
    assert value == pytest.approx(-float(nll.sum()), abs=1e-4)


# --- shapes and costs -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("share", [1 / 3, 1 / 2, 2 / 3])
def test_feed_forward_blocks_make_up_for_parameters(share):
    decoder_only = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(TOKENIZER), hidden_size=32, num_hidden_layers=6, num_attention_heads=4, intermediate_size=88
        )
    )
    encoder, decoder = split_layers(6, share)
    shape = matched(Shape(encoder, decoder, 32, 4, 2, 8), count_parameters(decoder_only), TOKENIZER)
    assert count_parameters(build(shape, TOKENIZER)) == pytest.approx(count_parameters(decoder_only), rel=0.005)


def test_a_network_that_is_too_large_already_is_refused():
    with pytest.raises(UsageError, match="fewer layers"):
        matched(SHAPE, 100, TOKENIZER)


def test_the_cache_of_the_source_does_not_grow_and_that_of_the_target_does():
    """Keys and values of 4 bytes: two per decoder layer, key head and dimension, for source and written tokens."""
    per_token = 2 * 4 * SHAPE.decoder_layers * SHAPE.key_heads * (SHAPE.width // SHAPE.heads)
    model, ids = network(), torch.arange(40, 60)[None]
    for tokens in (3, 6):
        cost = writing_cost(model, ids, tokens=tokens, repeats=1)
        assert cost.cache_bytes == per_token * (20 + tokens)


def test_flops_of_a_token_behind_a_long_source_grow_by_attention_alone():
    """Each key costs a product and a sum per head and dimension, once for the scores and once for the values."""
    model = network()
    short, long = (writing_cost(model, torch.ones(1, n, dtype=torch.int64), tokens=3, repeats=1) for n in (10, 60))
    assert long.token_flops - short.token_flops == 50 * 2 * 2 * SHAPE.width * SHAPE.decoder_layers
    assert long.first_token_flops > short.first_token_flops
    assert long.peak_bytes > short.peak_bytes > 0
    assert min(long.first_token_seconds, long.token_seconds, long.tokens_per_second) > 0
