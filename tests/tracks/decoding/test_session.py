"""A session says what a plain forward of the kept tokens would say, whatever was taken back in between."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from kdbench.tracks.decoding.decoders.session import SPARE, Counter, Session
from tests.helpers.causal import gpt2, llama

PROMPTS = [[1, 2, 3], [4], [2, 2, 1, 0, 3]]


def alone(model, ids):
    """Logits after the last of ``ids``, without cache or padding."""
    with torch.no_grad():
        return model(torch.tensor([ids])).logits[0, -1]


@pytest.mark.parametrize("make", [llama, gpt2])
def test_rows_of_different_lengths_read_as_if_alone(make):
    model = make()
    session = Session(model)
    session.prefill([prompt[:-1] for prompt in PROMPTS], pad=0)
    last = torch.tensor([[prompt[-1]] for prompt in PROMPTS])
    logits = session.forward(last)[:, -1]
    for row, prompt in enumerate(PROMPTS):
        assert torch.allclose(logits[row], alone(model, prompt), atol=1e-4)
    assert session.lengths.tolist() == [3, 1, 5]


@pytest.mark.parametrize("make", [llama, gpt2])
def test_forgotten_tokens_leave_no_trace(make):
    model = make()
    session = Session(model)
    session.prefill(PROMPTS, pad=0)
    texts = [list(prompt) for prompt in PROMPTS]
    generator = torch.Generator().manual_seed(0)
    for _ in range(12):
        ids = torch.randint(5, (3, 4), generator=generator)
        count = torch.randint(1, 5, (3,), generator=generator)
        session.forward(ids)
        session.keep(torch.arange(4) < count[:, None])
        for row in range(3):
            texts[row] += ids[row, : count[row]].tolist()
    last = torch.tensor([[1], [2], [3]])
    logits = session.forward(last)[:, -1]
    for row, text in enumerate(texts):
        assert torch.allclose(logits[row], alone(model, [*text, int(last[row])]), atol=1e-4)


def test_a_tail_that_no_row_keeps_is_cut_off(target):
    session = Session(target)
    session.prefill([[1, 2]], pad=0)
    session.forward(torch.tensor([[1, 2, 3, 4]]))
    session.keep(torch.tensor([[True, True, False, False]]))
    assert session.seen.shape[1] == 4
    assert session.cache.get_seq_length() == 4


def test_holes_are_cleared_away_when_they_pile_up(target):
    session = Session(target)
    session.prefill([[1], [2]], pad=0)
    texts, sizes = [[1], [2]], []
    for step in range(2 * SPARE):
        session.forward(torch.full((2, 4), step % 5))
        counts = (1, 4) if step % 2 else (4, 1)
        session.keep(torch.arange(4) < torch.tensor(counts)[:, None])
        for text, count in zip(texts, counts, strict=True):
            text += [step % 5] * count
        sizes.append(session.seen.shape[1])
        if len(texts[0]) > 100:
            break
    assert min(b - a for a, b in pairwise(sizes)) < 0, "it was compacted"
    logits = session.forward(torch.tensor([[3], [3]]))[:, -1]
    for row, text in enumerate(texts):
        assert torch.allclose(logits[row], alone(target, [*text, 3]), atol=1e-4)


def test_trim_keeps_the_first_tokens_of_each_row(target):
    session = Session(target)
    session.prefill([[1, 2, 3], [4, 0]], pad=0)
    session.forward(torch.tensor([[1, 1, 1], [2, 2, 2]]))
    session.trim(torch.tensor([4, 3]))
    assert session.lengths.tolist() == [4, 3]
    logits = session.forward(torch.tensor([[3], [3]]))[:, -1]
    assert torch.allclose(logits[0], alone(target, [1, 2, 3, 1, 3]), atol=1e-4)
    assert torch.allclose(logits[1], alone(target, [4, 0, 2, 3]), atol=1e-4)


def test_padding_columns_are_neither_seen_nor_counted(target):
    session = Session(target)
    session.prefill([[1, 2], [3, 4]], pad=0)
    present = torch.tensor([[False, True], [True, True]])
    logits = session.forward(torch.tensor([[0, 3], [1, 2]]), present=present)[:, -1]
    assert torch.allclose(logits[0], alone(target, [1, 2, 3]), atol=1e-4)
    assert torch.allclose(logits[1], alone(target, [3, 4, 1, 2]), atol=1e-4)
    assert session.lengths.tolist() == [3, 4]
    assert session.counter == Counter(forwards=1, tokens=3, prefill_tokens=4, seconds=session.counter.seconds)


def test_a_tree_is_read_in_one_forward(target):
    session = Session(target)
    session.prefill([[1, 2]], pad=0)
    # two branches after the root: 3 -> 4 and 3 -> 0
    visible = torch.tensor([[[1, 0, 0], [1, 1, 0], [1, 0, 1]]]).bool()
    positions = torch.tensor([[2, 3, 3]])
    logits = session.forward(torch.tensor([[3, 4, 0]]), visible=visible, positions=positions)[0]
    assert torch.allclose(logits[1], alone(target, [1, 2, 3, 4]), atol=1e-4)
    assert torch.allclose(logits[2], alone(target, [1, 2, 3, 0]), atol=1e-4)
    session.keep(torch.tensor([[True, False, True]]))
    after = session.forward(torch.tensor([[2]]))[0, -1]
    assert torch.allclose(after, alone(target, [1, 2, 3, 0, 2]), atol=1e-4)


def test_rows_can_be_chosen_and_repeated(target):
    session = Session(target)
    session.prefill([[1, 2, 3], [4, 0]], pad=0)
    session.select(torch.tensor([1, 1, 0]))
    logits = session.forward(torch.tensor([[3], [2], [1]]))[:, -1]
    for row, text in enumerate(([4, 0, 3], [4, 0, 2], [1, 2, 3, 1])):
        assert torch.allclose(logits[row], alone(target, text), atol=1e-4)


def test_hidden_states_are_what_the_output_layer_reads(target):
    session = Session(target)
    session.prefill([[1, 2, 3]], pad=0)
    logits, hidden = session.forward(torch.tensor([[1, 2]]), hidden=True)
    assert torch.allclose(target.lm_head(hidden), logits, atol=1e-5)


def test_only_columns_of_the_last_forward_can_be_kept(target):
    session = Session(target)
    session.prefill([[1, 2, 3]], pad=0)
    session.forward(torch.tensor([[1, 2]]))
    with pytest.raises(ValueError, match="2 columns, not 3"):
        session.keep(torch.ones(1, 3, dtype=torch.bool))
