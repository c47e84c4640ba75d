"""Chunks of the same bytes: likelihoods, debiased and merged, and hidden states at their ends."""

from __future__ import annotations

import pytest
import torch

from kdbench.losses.binarised import binary_ce
from kdbench.tracks.llm.blocks.alignment import Alignment
from kdbench.tracks.llm.chunks import Spoken, hidden_loss, likelihoods, spoken


def one_chunk_per_token(count: int, *, closed: bool = True) -> Alignment:
    """A row of ``count`` tokens that both sides share; the last is special where ``closed``."""
    each = torch.arange(count)
    after = torch.where(each + 1 < count, each + 1, -1)
    last = each == count - 1
    return Alignment((each, each), (after, after), torch.ones(count, dtype=torch.int64), last, last & closed)


def test_of_equal_tokenizers_it_is_a_binary_cross_entropy_of_each_token_and_at_rest_where_the_models_agree():
    torch.manual_seed(0)
    logits, targets = torch.randn(5, 7), torch.tensor([0, 3, 6, 2, 1])
    blanks = torch.tensor([True] + [False] * 6)
    teacher = spoken(logits, targets, blanks)
    student = logits.clone().requires_grad_()
    own = spoken(student, targets, blanks)
    p, q, scored, _ = likelihoods(one_chunk_per_token(5), teacher, own, append_space=False)
    assert scored.all()
    value = binary_ce(p, q, 1.0)
    chance = logits.softmax(-1)[torch.arange(5), targets]
    entropy = -(chance * chance.log() + (1 - chance) * (1 - chance).log())
    assert torch.allclose(value, entropy, atol=1e-4)
    value.sum().backward()
    assert student.grad.abs().max() < 1e-5
    elsewhere = (logits + torch.randn(5, 7)).requires_grad_()
    p, q, _, _ = likelihoods(one_chunk_per_token(5), teacher, spoken(elsewhere, targets, blanks), append_space=False)
    binary_ce(p, q, 1.0).sum().backward()
    assert elsewhere.grad.abs().max() > 1e-2


def test_a_chunk_includes_that_a_word_begins_after_it_unless_a_special_token_ends_it():
    spoke = Spoken(torch.tensor([-1.0, -2.0, -3.0]), torch.tensor([-0.1, -0.2, -0.3]), torch.ones(3))
    p, _, scored, _ = likelihoods(one_chunk_per_token(3), spoke, spoke)
    assert torch.allclose(p, torch.tensor([-1.2, -2.3, -3.0]))  # the word after token t is seen at position t + 1
    assert scored.tolist() == [True, True, True]
    _, _, scored, _ = likelihoods(one_chunk_per_token(3, closed=False), spoke, spoke)
    assert scored.tolist() == [True, True, False]


def test_chunks_are_joined_until_the_teacher_may_begin_a_word():
    word = torch.tensor([0.0, 0.01, 0.5, 0.01]).log()
    teacher = Spoken(torch.tensor([-1.0, -2.0, -3.0, -4.0]), word, torch.ones(4))
    student = Spoken(torch.tensor([-0.5, -0.5, -0.25, -0.25]), torch.zeros(4), torch.ones(4))
    p, q, _, joined = likelihoods(one_chunk_per_token(4), teacher, student, append_space=False, merge=0.1)
    assert p.tolist() == [-3.0, -7.0]  # only after the second token the teacher begins words
    assert q.tolist() == [-1.0, -0.5]
    assert joined.size.tolist() == [2, 2]
    assert joined.after[0].tolist() == [2, -1]


def test_hidden_states_are_compared_at_the_ends_of_chunks():
    torch.manual_seed(1)
    states, alignment, same = torch.randn(4, 3), one_chunk_per_token(4), torch.nn.Identity()
    assert hidden_loss(alignment, states, states, same) == 0
    changed = states.clone()
    changed[0] += 5.0  # it has read no token of a chunk yet
    assert hidden_loss(alignment, states, changed, same) == 0
    assert hidden_loss(alignment, states, torch.zeros(4, 3), same) == pytest.approx(1.0)
    assert hidden_loss(alignment, 7 * states, torch.zeros(4, 3), same) == pytest.approx(1.0)
