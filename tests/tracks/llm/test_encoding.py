"""Tokens, masks and shift; chunks lose no character."""

from __future__ import annotations

import pytest
import torch

from kdbench.cache import Cache
from kdbench.errors import JobError
from kdbench.losses.tokens import IGNORE
from kdbench.tracks.llm.data import cpython, text
from kdbench.tracks.llm.data.cpython import Document
from kdbench.tracks.llm.data.encoding import chunk_documents, encode_classes, encode_pairs
from kdbench.tracks.llm.data.specs import TextData
from kdbench.tracks.llm.networks import models, tokenizers
from kdbench.tracks.llm.spec import Net

TEXTS = ["Reverse the letters: k t e", "What is 12 + 7?\n19", "def f(x):\n    return x  # twice", "naïve ☃ text"]


@pytest.fixture(scope="module")
def tokenizer():
    return tokenizers.wrap(tokenizers.train(TEXTS * 20, 300))


@pytest.mark.parametrize("size", [259, 300, 512])
def test_tokenizers_lose_nothing(size: int):
    tokenizer = tokenizers.wrap(tokenizers.train(TEXTS * 20, size))
    for sample in [*TEXTS, "unseen: ŷ 漢字 \t\x00"]:
        assert tokenizer.decode(tokenizer(sample, add_special_tokens=False)["input_ids"]) == sample
    assert len(tokenizer) <= size
    assert len({tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id}) == 3


def test_digits_stay_single_tokens(tokenizer):
    assert len(tokenizer("1234567", add_special_tokens=False)["input_ids"]) == 7


def test_bytes_tokenizer_counts_bytes():
    tokenizer = tokenizers.wrap(tokenizers.train(TEXTS, tokenizers.SIZES["bytes"]))
    sample = "naïve ☃"
    assert len(tokenizer(sample, add_special_tokens=False)["input_ids"]) == len(sample.encode())


def test_only_the_response_and_its_end_are_scored(tokenizer):
    prompts, responses = ["Say: ", "A longer prompt to answer: "], ["yes", "no no no"]
    sequences, kept = encode_pairs(prompts, responses, tokenizer, 64)
    assert kept == [0, 1]
    batch = sequences.batch(torch.arange(2))
    targets = models.targets_of(batch)
    expected = [
        id for r in responses for id in [*tokenizer(r, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
    ]
    assert targets.tolist() == expected
    # the logits of the last prompt token score the first response token
    first = batch.scored.float().argmax(dim=1)
    lengths = [len(tokenizer(p, add_special_tokens=False)["input_ids"]) for p in prompts]
    assert first.tolist() == lengths
    assert (batch.labels[batch.attention_mask == 0] == IGNORE).all()
    assert (batch.input_ids[:, 0] == tokenizer.bos_token_id).all()


def test_long_items_are_never_cut(tokenizer):
    with pytest.raises(JobError, match=r"data\.length = 8"):
        encode_pairs(["a long prompt with words"], ["answer"], tokenizer, 8)
    _, kept = encode_pairs(["a long prompt with words", "x"], ["answer", "y"], tokenizer, 8, too_long="drop")
    assert kept == [1]


def test_chunks_are_the_text_that_their_tokens_stand_for(tokenizer):
    plain = "".join(TEXTS[:3]) * 9  # ASCII: no token boundary falls inside a character
    documents = [Document(plain, "docs", {"name": "a"}), Document("short text", "code", {"name": "b"})]
    sequences, chunks = chunk_documents(documents, tokenizer, 16)
    for row, length, chunk in zip(sequences.ids, sequences.lengths, chunks, strict=True):
        assert tokenizer.decode(row[1:length]) == chunk.text
    whole = "".join(chunk.text for chunk in chunks if chunk.document == "a")
    assert documents[0].text.startswith(whole)
    assert len(documents[0].text) - len(whole) < 16 * 8, "only a rest of less than half a row is dropped"


def test_logits_are_made_at_scored_positions_only_and_are_those_of_the_whole_forward(tokenizer):
    sequences, _ = encode_pairs(["Say: ", "Longer prompt: "], ["yes", "no no"], tokenizer, 64)
    batch = sequences.batch(torch.arange(2))
    for family in ("llama", "gpt2"):
        torch.manual_seed(0)
        model = models.build(Net(family=family, layers=2, width=16, heads=2), tokenizer).eval()
        full = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits[:, :-1][batch.scored]
        assert models.body_and_head(model) is not None
        assert torch.allclose(models.scored_logits(model, batch), full, atol=1e-6)


def test_padding_changes_nothing(tokenizer):
    torch.manual_seed(0)
    model = models.build(Net(layers=2, width=16, heads=2), tokenizer).eval()
    sequences, _ = encode_pairs(["Say: ", "A much longer prompt: "], ["yes", "no"], tokenizer, 64)
    both = models.scored_logits(model, sequences.batch(torch.arange(2)))
    alone = models.scored_logits(model, sequences.batch(torch.tensor([0])))
    assert torch.allclose(both[: len(alone)], alone, atol=1e-5)


def test_class_rows_are_cut(tokenizer):
    sequences = encode_classes(["a b c d e f g h", "x"], [1, 0], tokenizer, 4)
    assert sequences.lengths.tolist()[0] == 4
    assert sequences.batch(torch.tensor([1, 0])).labels.tolist() == [0, 1]


def test_the_pinned_corpus_ships_with_the_track(tmp_path):
    from kdbench.tracks.llm import TRACK

    pinned = "4228fce2625d0d55"
    corpus = cpython.load(Cache(tmp_path, packs=(TRACK.packs,)), pinned)
    assert not list(tmp_path.iterdir()), "it came from the pack"
    assert cpython.digest_of(corpus) == pinned
    assert all(row["text"].isascii() for rows in corpus.values() for row in rows)


def test_a_corpus_that_is_not_there_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(cpython.platform, "python_version", lambda: "3.99.0")
    with pytest.raises(JobError, match="corpus"):
        cpython.load(Cache(tmp_path), "0" * 16)


def test_text_splits_share_no_document_and_noise_stays_in_training(tmp_path):
    data = TextData(domains=("facts", "arith"), persons=20, bytes_per_domain=30_000, noise=0.3)
    splits = text.documents(data, Cache(tmp_path))
    names = {split: {document.meta["name"] for document in documents} for split, documents in splits.items()}
    assert not names["train"] & names["val"]
    assert not (names["train"] | names["val"]) & names["test"]
    noisy = [document.meta.get("noise") for document in splits["train"]]
    assert 0.1 < sum(kind is not None for kind in noisy) / len(noisy) < 0.5
    assert {"shuffled", "boilerplate"} <= set(noisy)
    assert not any("noise" in document.meta for document in splits["val"] + splits["test"])


def test_arithmetic_is_right(tmp_path):
    for document in text.arithmetic(TextData(bytes_per_domain=4000)):
        for line in document.text.splitlines():
            left, right = line.split(" = ")
            assert eval(left) == int(right)


def test_ascii_text_keeps_one_byte_per_character():
    assert cpython.ascii_text("“naïve” — ☃") == '"naive" -- '
