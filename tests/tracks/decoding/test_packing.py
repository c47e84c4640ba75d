"""Two streams in one row: who sees whom, at which position, and what is compared with what."""

from __future__ import annotations

import pytest
import torch

from kdbench.tracks.decoding.blocks.packing import (
    CLEAN,
    NOISY,
    PADDING,
    PROMPT,
    Example,
    PackedLoader,
    pack,
    packed_logits,
)
from tests.helpers.causal import gpt2, llama

PAD, END = 0, 4
# prompt 1 2, blocks of two tokens: guessed 3 3 | 1 2, right 3 2 | 1 1
SMALL = Example([1, 2], [[3, 3], [1, 2]], [[3, 2], [1, 1]])

# rows and columns: p p | k0 k0 | c0 c0 | k1 k1 | c1 c1
NOISY_CONTEXT = """
1 .   . .   . .   . .   . .
1 1   . .   . .   . .   . .
1 1   1 .   . .   . .   . .
1 1   1 1   . .   . .   . .
1 1   . .   1 .   . .   . .
1 1   . .   1 1   . .   . .
1 1   1 1   . .   1 .   . .
1 1   1 1   . .   1 1   . .
1 1   . .   1 1   . .   1 .
1 1   . .   1 1   . .   1 1
"""
CLEAN_CONTEXT = """
1 .   . .   . .   . .   . .
1 1   . .   . .   . .   . .
1 1   1 .   . .   . .   . .
1 1   1 1   . .   . .   . .
1 1   . .   1 .   . .   . .
1 1   . .   1 1   . .   . .
1 1   . .   1 1   1 .   . .
1 1   . .   1 1   1 1   . .
1 1   . .   1 1   . .   1 .
1 1   . .   1 1   . .   1 1
"""


def matrix(text):
    return torch.tensor([[cell == "1" for cell in line.split()] for line in text.split("\n") if line])


def places(batch, stream):
    """Rows and places of all tokens of a stream, in order."""
    return (batch.stream == stream).nonzero().unbind(dim=1)


def plain(model, ids):
    """Logits (L, V) after every token of a row, without packing."""
    with torch.no_grad():
        return model(torch.tensor([ids])).logits[0]


@pytest.mark.parametrize(("context", "expected"), [("noisy", NOISY_CONTEXT), ("clean", CLEAN_CONTEXT)])
def test_visibility(context, expected):
    batch = pack([SMALL], pad=PAD, end=END)
    assert torch.equal(batch.visible(context)[0], matrix(expected))


def test_both_streams_share_their_positions():
    batch = pack([SMALL], pad=PAD, end=END)
    assert batch.ids[0].tolist() == [1, 2, 3, 3, 3, 2, 1, 2, 1, 1]
    assert batch.positions[0].tolist() == [0, 1, 2, 3, 2, 3, 4, 5, 4, 5]
    assert batch.stream[0].tolist() == [PROMPT] * 2 + ([NOISY] * 2 + [CLEAN] * 2) * 2
    assert batch.block[0].tolist() == [-1, -1, 0, 0, 0, 0, 1, 1, 1, 1]


def test_what_is_predicted_and_what_is_compared():
    batch = pack([SMALL], pad=PAD, end=END)
    assert torch.stack(batch.next_prompt, dim=1).tolist() == [[0, 0, 2]]
    # the first clean token from the end of the prompt, that of the second block from the end of the first clean one
    assert torch.stack(batch.next_clean, dim=1).tolist() == [[0, 1, 3], [0, 4, 2], [0, 5, 1], [0, 8, 1]]
    # each block from its first wrong guess on
    assert torch.stack(batch.guesses, dim=1).tolist() == [[0, 3, 5], [0, 7, 9]]


def test_a_wrong_guess_and_all_behind_it_are_compared_even_if_right_again():
    batch = pack([Example([1], [[2, 9, 3, 3]], [[2, 1, 3, 3]])], pad=PAD, end=END)
    assert batch.guesses.place.tolist() == [2, 3, 4]
    assert batch.guesses.other.tolist() == [6, 7, 8]


def test_what_would_follow_the_end_is_no_target():
    batch = pack([Example([1], [[3, 3, 3]], [[2, 1, END]])], pad=PAD, end=END)
    assert batch.guesses.place.tolist() == [1, 2]
    assert batch.next_clean.other.tolist() == [2, 1, END]  # the end itself is


def test_blocks_without_a_wrong_guess_are_not_compared():
    batch = pack([Example([1], [[2, 3]], [[2, 3]])], pad=PAD, end=END)
    assert len(batch.guesses.row) == 0
    assert batch.blocks.tolist() == [1]


@pytest.mark.parametrize("make", [llama, gpt2])
def test_one_forward_says_what_one_for_each_stream_would(make):
    model = make()
    batch = pack([SMALL], pad=PAD, end=END)
    prompt, noisy, clean = packed_logits(model, batch, [places(batch, kind) for kind in (PROMPT, NOISY, CLEAN)])
    guessed, right = plain(model, [1, 2, 3, 3, 1, 2]), plain(model, [1, 2, 3, 2, 1, 1])
    assert torch.allclose(prompt, right[:2], atol=1e-5)
    assert torch.allclose(noisy, guessed[2:], atol=1e-5)
    assert torch.allclose(clean, right[2:], atol=1e-5)


@pytest.mark.parametrize("make", [llama, gpt2])
def test_with_clean_context_a_guessed_block_follows_the_right_text(make):
    model = make()
    batch = pack([SMALL], pad=PAD, end=END)
    (noisy,) = packed_logits(model, batch, [places(batch, NOISY)], "clean")
    assert torch.allclose(noisy[:2], plain(model, [1, 2, 3, 3])[2:], atol=1e-5)
    assert torch.allclose(noisy[2:], plain(model, [1, 2, 3, 2, 1, 2])[4:], atol=1e-5)


def test_the_streams_do_not_leak_into_each_other():
    model = llama()
    before = pack([SMALL], pad=PAD, end=END)
    other = pack([Example([1, 2], [[1, 1], [2, 2]], SMALL.clean)], pad=PAD, end=END)
    assert torch.equal(*[packed_logits(model, batch, [places(batch, CLEAN)])[0] for batch in (before, other)])
    other = pack([Example([1, 2], SMALL.noisy, [[1, 1], [2, 2]])], pad=PAD, end=END)
    assert torch.equal(*[packed_logits(model, batch, [places(batch, NOISY)])[0] for batch in (before, other)])


def test_rows_of_different_lengths_do_not_touch_each_other():
    model = llama()
    longer = Example([2, 1, 3, 1], [[2, 2, 2], [1, 1]], [[2, 3, 1], [1, 2]])
    both, one = pack([longer, SMALL], pad=PAD, end=END), pack([SMALL], pad=PAD, end=END)
    assert both.stream[1, 10:].eq(PADDING).all()
    assert both.positions[0, 4:].tolist() == [4, 5, 6, 4, 5, 6, 7, 8, 7, 8]
    assert both.blocks.tolist() == [2, 2]
    assert torch.equal(both.guesses.row, torch.tensor([0] * 3 + [1] * 2))
    row, place = places(one, NOISY)
    together = packed_logits(model, both, [(row + 1, place)])[0]
    assert torch.allclose(together, packed_logits(model, one, [(row, place)])[0], atol=1e-5)


def test_blocks_that_do_not_fit_each_other_are_refused():
    with pytest.raises(ValueError, match="of the same lengths"):
        Example([1], [[1, 2]], [[1]])
    with pytest.raises(ValueError, match="a prompt"):
        Example([], [[1]], [[1]])


def test_a_loader_goes_on_where_it_was():
    examples = [Example([1], [[token]], [[token]]) for token in range(7)]

    def loader():
        return PackedLoader(examples, 2, torch.Generator().manual_seed(0), pad=PAD, end=END)

    whole = [batch.ids[:, 1].tolist() for batch in loader()]
    assert sorted(token for batch in whole for token in batch) == list(range(7))
    first = loader()
    taken = iter(first)
    next(taken), next(taken)
    again = loader()
    again.load_state_dict(first.state_dict())
    assert [batch.ids[:, 1].tolist() for batch in again] == whole[2:]
    assert len(again) == 4
