"""Alignment of two tokenizers: every byte once, and vocabularies that take over from one another."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from kdbench.errors import JobError
from kdbench.tracks.llm.blocks.alignment import (
    SPECIAL,
    boundaries,
    chunk_align,
    edit_distances,
    nearest_tokens,
    spelling,
    starts_word,
    transplant,
    vocabulary_bytes,
)
from kdbench.tracks.llm.data.encoding import encode, encode_pairs

PROMPTS = ["Say it: ", "a", "x\n"]
RESPONSES = ["Grüße, 東京!  two  blanks", "add 12 and 345 is 357", "\ttab\n\nlines\n"]


def test_tokens_stand_for_the_bytes_of_the_text(make_task):
    task = make_task("instruct")
    for name in ("bytes", "bpe512", "bpe2048"):
        tokenizer = task.local_tokenizer(name)
        words = vocabulary_bytes(tokenizer)
        for text, ids in zip(RESPONSES, encode(RESPONSES, tokenizer), strict=True):
            assert b"".join(words[i] for i in ids) == text.encode()
        assert words[tokenizer.eos_token_id] == SPECIAL
        blank = starts_word(words)
        assert blank[tokenizer.eos_token_id]
        assert blank[encode([" "], tokenizer)[0][0]]
        assert not blank[encode(["x"], tokenizer)[0][0]]


@pytest.mark.parametrize(("first", "second"), [("bpe512", "bytes"), ("bpe512", "bpe2048"), ("bpe2048", "bpe512")])
def test_chunks_are_the_same_bytes_on_both_sides_and_no_two_of_them_could_be_cut_further(make_task, first, second):
    task = make_task("instruct")
    tokenizers = [task.local_tokenizer(name) for name in (first, second)]
    words = [vocabulary_bytes(one) for one in tokenizers]
    batches = [encode_pairs(PROMPTS, RESPONSES, one, 4096)[0].batch(torch.arange(3)) for one in tokenizers]
    alignment = chunk_align(tuple(batches), tuple(words))
    told = []
    for side in (0, 1):
        targets = batches[side].labels[:, 1:][batches[side].scored].tolist()
        spans = [[] for _ in range(len(alignment))]
        for token, chunk in zip(targets, alignment.chunks[side].tolist(), strict=True):
            spans[chunk].append(words[side][token])
        told.append(spans)
    for a, b, size in zip(*told, alignment.size.tolist(), strict=True):
        assert b"".join(a) == b"".join(b)
        assert size == (1 if a == [SPECIAL] else len(b"".join(a)))
        ends = [set(np.cumsum([len(token) for token in span]).tolist()) for span in (a, b)]
        assert ends[0] & ends[1] == {len(b"".join(a))}
    assert alignment.ends_row.sum() == 3
    assert torch.equal(alignment.closed, alignment.ends_row)  # each response ends with <eos>, a chunk of its own
    assert (alignment.after[0][alignment.ends_row] == -1).all()
    ends = torch.tensor([int((alignment.chunks[0] <= i).sum()) for i in range(len(alignment))])
    assert torch.equal(alignment.after[0][~alignment.ends_row], ends[~alignment.ends_row])


def test_merging_keeps_bytes_tokens_and_rows(make_task):
    task = make_task("instruct")
    tokenizers = [task.local_tokenizer(name) for name in ("bpe512", "bytes")]
    batches = tuple(encode_pairs(PROMPTS, RESPONSES, one, 4096)[0].batch(torch.arange(3)) for one in tokenizers)
    alignment = chunk_align(batches, tuple(vocabulary_bytes(one) for one in tokenizers))
    whole = alignment.merged(torch.zeros(len(alignment), dtype=torch.bool))
    assert whole.size.tolist() == [len(text.encode()) + 1 for text in RESPONSES]
    same = alignment.merged(torch.ones(len(alignment), dtype=torch.bool))
    assert torch.equal(same.chunks[0], alignment.chunks[0])
    assert torch.equal(same.after[1], alignment.after[1])
    values = torch.arange(len(alignment.chunks[1]), dtype=torch.float32)
    assert whole.sums(1, values).sum() == alignment.sums(1, values).sum() == values.sum()


def test_blanks_before_the_first_word_that_one_tokenizer_adds():
    first, second = boundaries([b" a", b"b"], [b"ab"])
    assert (first.tolist(), second.tolist()) == ([2], [1])
    first, second = boundaries([b" a", b"b"], [b"a", b"b"])
    assert (first.tolist(), second.tolist()) == ([1, 2], [1, 2])


def test_texts_that_differ_are_an_error():
    with pytest.raises(JobError, match="same bytes"):
        boundaries([b"ab"], [b"ac"])


def test_a_new_vocabulary_starts_as_the_mean_of_what_spelt_its_tokens(make_task):
    task = make_task("instruct")
    old, new = task.tokenizer, task.local_tokenizer("bpe2048")
    model = task.student()
    before = [layer.weight.detach().clone() for layer in (model.get_input_embeddings(), model.get_output_embeddings())]
    pieces = spelling(old, new)
    words, theirs = vocabulary_bytes(new), vocabulary_bytes(old)
    plain = [i for i, word in enumerate(words) if word != SPECIAL]
    assert all(b"".join(theirs[j] for j in pieces[i]) == words[i] for i in plain)
    transplant(model, old, new)
    assert model.config.vocab_size == len(new)
    for layer, weight in zip((model.get_input_embeddings(), model.get_output_embeddings()), before, strict=True):
        assert layer.weight.shape[0] == len(new)
        longest = max(plain, key=lambda i: len(pieces[i]))
        assert len(pieces[longest]) > 1
        for i in (longest, new.eos_token_id, plain[0]):
            assert torch.allclose(layer.weight[i], weight[pieces[i]].mean(0), atol=1e-6)


def test_the_same_vocabulary_changes_nothing(make_task):
    task = make_task("instruct")
    model, twin = task.student(), task.student()
    transplant(model, task.tokenizer, task.tokenizer)
    for name, tensor in twin.state_dict().items():
        assert torch.allclose(model.state_dict()[name], tensor, atol=1e-7), name


def test_edit_distances():
    words = [b"kitten", b"sitting", b"", b"abc"]
    codes = np.full((4, 7), -1)
    for i, word in enumerate(words):
        codes[i, : len(word)] = list(word)
    lengths = np.array([len(word) for word in words])
    assert edit_distances(b"sitting", codes, lengths).tolist() == [3, 0, 7, 7]
    assert edit_distances(b"abd", codes, lengths).tolist() == [6, 7, 3, 1]


def test_tokens_that_both_have_are_nearest_to_themselves(make_task):
    task = make_task("instruct")
    old, new = task.tokenizer, task.local_tokenizer("bytes")
    words, theirs = vocabulary_bytes(new), vocabulary_bytes(old)
    assert [theirs[i] for i in nearest_tokens(old, new).tolist()] == words
