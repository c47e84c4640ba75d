"""Text of several lengths: windows that end alike, pass keys, and the language model with any position encoding."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM, DynamicCache

from kdbench.errors import JobError
from kdbench.tracks.llm.data import lengths
from kdbench.tracks.llm.data.cpython import Document
from kdbench.tracks.llm.data.specs import LengthsData
from kdbench.tracks.llm.networks.models import scored_logits
from kdbench.tracks.llm.networks.positional import PositionalConfig, PositionalLM

LENGTHS = (64, 128, 256, 512)


@pytest.fixture
def task(make_task):
    made = make_task("text-lengths")
    made.phase = "evaluate"
    return made


def test_windows_of_all_lengths_end_in_the_same_tokens(task):
    split = task.split("probes")
    ids, size = split.sequences.ids, split.sequences.lengths
    ends = {}
    for row, probe in enumerate(split.rows):
        assert int(size[row]) == probe.length
        tokens = ids[row, : probe.length]
        assert task.tokenizer.decode(tokens[1:]) == probe.text + probe.response
        assert int(tokens[0]) == task.tokenizer.bos_token_id
        if probe.domain != "passkey":
            assert probe.length - int(split.sequences.starts[row]) == 32
            ends.setdefault(probe.length, []).append(tokens[-63:].tolist())
    assert ends[64] == ends[128] == ends[256] == ends[512]


def test_pass_keys_are_in_the_text_that_asks_for_them(task):
    asked = [probe for probe in task.split("probes").rows if probe.domain == "passkey"]
    assert sorted({probe.length for probe in asked}) == list(LENGTHS)
    for probe in asked:
        assert probe.text.count(lengths.STATEMENT.format(key=probe.response)) == 1
        assert probe.text.endswith(lengths.QUESTION)
    chunks = task.split("train").rows
    assert sum(chunk.domain == "passkey" for chunk in chunks) == len(chunks) // 5
    assert all(chunk.length == 0 for chunk in chunks)


def test_scores_are_those_of_the_probes(task):
    """A model that copies the key is right at every length, and perplexity is that of the last tokens alone."""

    class Copies(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(1))

        def scored_logits(self, batch):
            rows, places = batch.scored.nonzero(as_tuple=True)
            right = batch.input_ids[rows, places + 1]
            return 4.0 * torch.nn.functional.one_hot(right, len(task.tokenizer)) + self.weight

    scores = task.kind.measure(task, Copies()).metrics
    for size in LENGTHS:
        assert scores[f"passkey/{size}"] == 1
        assert scores[f"perplexity/{size}"] == pytest.approx(scores["perplexity"], rel=1e-4)


def test_a_model_with_a_tokenizer_of_its_own_is_scored_on_the_same_text(task):
    tokenizer = task.local_tokenizer("bytes")
    rows = task.kind.encode_rows(task.split("probes").rows[:3], tokenizer)
    for row, probe in enumerate(task.split("probes").rows[:3]):
        start = int(rows.starts[row])
        assert tokenizer.decode(rows.ids[row, start : int(rows.lengths[row])]) == probe.response


def test_documents_that_are_too_short_are_refused(task):
    short = [Document("a b c", "facts", {"name": "x"})]
    with pytest.raises(JobError, match="no document has 63 tokens"):
        lengths.windows(short, task.tokenizer, (64,), 8, 1)


def test_the_scored_tokens_need_a_context():
    with pytest.raises(ValueError, match="need a context"):
        LengthsData(lengths=(32, 64), stride=32)


# --- the network ------------------------------------------------------------------------------------------------------

KINDS = [
    ("learned", {"beyond": "extend"}),
    ("sinusoidal", {}),
    ("rope", {}),
    ("alibi", {}),
    ("none", {}),
    *(("seqpe", {"use": use}) for use in ("attn_scalar", "attn_mul", "attn_add", "input_add")),
    ("seqpe", {"maps": "per_layer"}),
]


@pytest.fixture(params=KINDS, ids=lambda kind: "-".join((kind[0], *kind[1].values())))
def model(request):
    torch.manual_seed(0)
    kind, options = request.param
    config = PositionalConfig(
        vocab_size=40, hidden_size=16, intermediate_size=32, encoding=kind, encoding_options={**options, "code": 16}
    )
    return PositionalLM(config).eval()


def test_padding_on_the_left_and_a_cache_change_nothing(model):
    ids = torch.randint(0, 40, (2, 12), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        whole = model(ids).logits
        pad = torch.zeros(2, 3, dtype=torch.int64)
        padded = model(torch.cat([pad, ids], 1), attention_mask=torch.cat([pad, torch.ones_like(ids)], 1)).logits
        cache = DynamicCache(config=model.config)
        parts = [model(ids[:, :9], past_key_values=cache, use_cache=True).logits]
        for i in range(9, 12):
            at = torch.full((2, 1), i)
            parts.append(model(ids[:, i : i + 1], position_ids=at, past_key_values=cache, use_cache=True).logits)
    torch.testing.assert_close(padded[:, 3:], whole, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(torch.cat(parts, 1), whole, atol=1e-5, rtol=1e-5)


def test_it_looks_back_only(model):
    ids = torch.randint(0, 40, (1, 10), generator=torch.Generator().manual_seed(0))
    other = ids.clone()
    other[0, 6:] = 0
    with torch.no_grad():
        torch.testing.assert_close(model(ids).logits[:, :6], model(other).logits[:, :6])


def test_a_shift_of_positions_is_seen_by_absolute_encodings_alone(model):
    ids = torch.randint(0, 40, (1, 10), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        plain, moved = model(ids).logits, model(ids, position_ids=(100 + torch.arange(10))[None]).logits
    relative = model.config.encoding in ("rope", "alibi", "none")
    assert torch.allclose(plain, moved, atol=1e-5) == relative


def test_it_is_read_back_as_it_was_written(model, tmp_path):
    model.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    ids = torch.arange(10)[None]
    with torch.no_grad():
        assert torch.equal(again(ids).logits, model(ids).logits)


def test_scored_positions_are_those_of_the_whole_forward(task):
    torch.manual_seed(0)
    model = PositionalLM(PositionalConfig(vocab_size=len(task.tokenizer), tie_word_embeddings=True)).eval()
    assert model.head.weight is model.tokens.weight
    batch = task.split("probes").sequences.batch(torch.tensor([0, 5]), "probes")
    with torch.no_grad():
        whole = model(batch.input_ids, batch.attention_mask).logits[:, :-1][batch.scored]
        torch.testing.assert_close(scored_logits(model, batch), whole)
