"""Shifting, selecting, next-token loss, reductions, and the distance between vocabularies."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from kdbench.losses.tokens import (
    IGNORE,
    Positions,
    next_token_nll,
    reduce_tokens,
    scored_positions,
    seq_mean,
    shift_mask,
    tok_mean,
    truncate_pairwise,
    uld,
)

EOS = 2


@pytest.fixture
def batch():
    """Two prompts with responses of two and one tokens, each with its end, and one padding position."""
    ids = torch.tensor([[5, 6, 7, 8, EOS, EOS], [5, 6, 9, EOS, EOS, EOS]])
    labels = torch.tensor([[IGNORE, IGNORE, 7, 8, EOS, IGNORE], [IGNORE, IGNORE, 9, EOS, IGNORE, IGNORE]])
    logits = torch.randn(2, 6, 12, generator=torch.Generator().manual_seed(0), requires_grad=True)
    return ids, labels, logits


def test_the_first_response_token_is_scored_by_the_last_position_of_the_prompt(batch):
    _, labels, _ = batch
    targets, mask = shift_mask(labels)
    assert mask.tolist() == [[False, True, True, True, False], [False, True, True, False, False]]
    assert targets[mask].tolist() == [7, 8, EOS, 9, EOS]


def test_only_positions_that_predict_a_response_token_get_a_gradient(batch):
    _, labels, logits = batch
    tok_mean(next_token_nll(logits, labels), shift_mask(labels)[1]).backward()
    used = logits.grad.abs().sum(-1) > 0
    assert used.tolist() == [[False, True, True, True, False, False], [False, True, True, False, False, False]]


def test_the_end_of_text_token_is_scored_although_padding_is_the_same_token(batch):
    ids, labels, _ = batch
    certain = torch.full((2, 6, 12), -20.0)
    certain[:, :-1].scatter_(-1, ids[:, 1:, None], 20.0)  # predicts every next token
    assert next_token_nll(certain, labels).max() < 1e-6
    certain[0, 3] = 0.0  # no longer predicts the end of the first response
    assert tok_mean(next_token_nll(certain, labels), shift_mask(labels)[1]) > 0.1


def test_next_token_loss_is_the_one_of_transformers(batch):
    """transformers shifts labels that are aligned with the inputs exactly once, as here."""
    _, labels, logits = batch
    expected = F.cross_entropy(logits[:, :-1].reshape(-1, 12), labels[:, 1:].reshape(-1), ignore_index=IGNORE)
    nll, (_, mask) = next_token_nll(logits, labels), shift_mask(labels)
    assert torch.allclose(tok_mean(nll, mask), expected)
    assert (nll[~mask] == 0).all()


def test_scored_positions_are_row_major_and_know_their_sequence(batch):
    _, labels, logits = batch
    chosen = scored_positions(logits, labels)
    assert chosen.sequence.tolist() == [0, 0, 0, 1, 1]
    assert torch.equal(chosen.logits[0], logits[0, 1])
    assert torch.equal(chosen.logits[3], logits[1, 1])
    nll = F.cross_entropy(chosen.logits, chosen.targets, reduction="none")
    assert torch.allclose(nll, next_token_nll(logits, labels)[shift_mask(labels)[1]])


def test_token_mean_weighs_tokens_and_sequence_mean_weighs_sequences(batch):
    values, sequence = torch.tensor([1.0, 1.0, 1.0, 5.0, 7.0]), torch.tensor([0, 0, 0, 1, 1])
    assert tok_mean(values).item() == pytest.approx(3)
    assert seq_mean(values, sequence).item() == pytest.approx((1 + 6) / 2)
    assert reduce_tokens(values, sequence).item() == pytest.approx(3)
    assert reduce_tokens(values, sequence, "seq_mean").item() == pytest.approx(3.5)


def test_sequences_without_a_scored_token_do_not_count():
    assert seq_mean(torch.tensor([2.0, 4.0]), torch.tensor([0, 3])).item() == pytest.approx(3)


def test_nothing_scored_is_zero_not_undefined():
    nothing = torch.zeros(0, requires_grad=True)
    assert tok_mean(nothing).item() == 0
    assert seq_mean(nothing, torch.zeros(0, dtype=torch.long)).item() == 0
    assert tok_mean(torch.ones(2, 3), torch.zeros(2, 3, dtype=torch.bool)).item() == 0


# --- universal logit distance -----------------------------------------------------------------------------------------


def test_uld_ignores_which_token_has_which_probability():
    student = torch.randn(4, 10, generator=torch.Generator().manual_seed(1))
    shuffled = student[:, torch.randperm(10, generator=torch.Generator().manual_seed(2))]
    assert uld(student, shuffled).abs().max() < 1e-6


def test_uld_pads_the_smaller_vocabulary_with_impossible_tokens():
    small, large = torch.zeros(1, 2), torch.zeros(1, 4)  # uniform over 2 and over 4
    assert uld(small, large).item() == pytest.approx(0.25 * 2 + 0.25 * 2)
    assert uld(large, small).item() == pytest.approx(1.0)


def test_uld_stays_within_its_range_and_leaves_the_teacher_alone():
    student = (100 * torch.randn(20, 7)).requires_grad_()
    teacher = (100 * torch.randn(20, 11)).requires_grad_()
    value = uld(student, teacher)
    assert value.shape == (20,)
    assert ((value >= 0) & (value <= 2)).all()
    value.sum().backward()
    assert teacher.grad is None


def test_positions_of_two_tokenisations_pair_within_each_sequence():
    def positions(rows, width):
        count = len(rows)
        marks = torch.arange(count, dtype=torch.float32)[:, None].expand(count, width)
        return Positions(marks, torch.zeros(count, dtype=torch.long), torch.tensor(rows))

    mine, theirs = truncate_pairwise(positions([0, 0, 0, 1], 5), positions([0, 0, 1, 1, 1], 8))
    assert mine[:, 0].tolist() == [0, 1, 3]
    assert theirs[:, 0].tolist() == [0, 1, 2]
