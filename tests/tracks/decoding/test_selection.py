"""Selection of tokens by their gap, the loss over them, and looks at the selection."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kdbench.losses.divergences import fkl
from kdbench.losses.tokens import tok_mean
from kdbench.tracks.decoding.blocks.selection import Looks, histogram, learnable, selective_loss

GAP = torch.randn(101, generator=torch.Generator().manual_seed(0))


@given(share=st.floats(0.01, 1.0), seed=st.integers(0, 20))
def test_kept_are_those_at_or_above_the_quantile_of_the_batch(share, seed):
    gap = torch.randn(57, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).float()
    kept = learnable(gap, share)
    threshold = torch.quantile(gap, 1 - share)
    clear = (gap - threshold).abs() > 1e-5  # the threshold itself is a matter of rounding
    assert torch.equal(kept[clear], (gap >= threshold)[clear])
    assert kept.any()


def test_the_ends_of_the_share():
    assert learnable(GAP, 1.0).all()
    assert learnable(GAP, 1e-9).nonzero().squeeze(1).tolist() == [int(GAP.argmax())]


def test_the_lowest_are_the_others():
    top, lowest = learnable(GAP, 0.4), learnable(GAP, 0.4, "lowest")
    assert not (top & lowest).any()
    assert GAP[top].min() > GAP[lowest].max()
    assert top.sum() == lowest.sum() == 41


def test_a_random_selection_has_the_share_and_no_regard_for_the_gap():
    generator = torch.Generator().manual_seed(0)
    drawn = [learnable(GAP, 0.4, "random", generator) for _ in range(200)]
    assert all(kept.sum() == 41 for kept in drawn)
    often = torch.stack(drawn).float().mean(0)
    assert often.min() > 0.2
    assert often.max() < 0.6
    assert abs(torch.corrcoef(torch.stack([often, GAP]))[0, 1]) < 0.3
    with pytest.raises(ValueError, match="generator"):
        learnable(GAP, 0.4, "random")


def test_equal_gaps_are_all_kept():
    assert learnable(torch.zeros(10), 0.3).all()


def logits(seed):
    return 2 * torch.randn(40, 7, generator=torch.Generator().manual_seed(seed))


def test_with_every_token_kept_loss_and_gradient_are_those_of_forward_kl():
    for normalise in ("kept", "all"):
        one, other = logits(0).requires_grad_(), logits(0).requires_grad_()
        values = fkl(one, logits(1))
        gap = values.detach() - fkl(logits(2), logits(1))
        loss, plain = selective_loss(values, learnable(gap, 1.0), normalise), tok_mean(fkl(other, logits(1)))
        loss.backward(), plain.backward()
        assert torch.equal(loss, plain)
        assert torch.equal(one.grad, other.grad)


def test_dropped_tokens_get_no_gradient_and_the_two_normalisations_differ_by_the_share():
    kept = learnable(GAP[:40], 0.4)
    student = logits(0).requires_grad_()
    mean, total = (selective_loss(fkl(student, logits(1)), kept, normalise) for normalise in ("kept", "all"))
    assert mean.item() == pytest.approx(fkl(student, logits(1))[kept].mean().item())
    assert total.item() == pytest.approx(mean.item() * kept.sum().item() / 40)
    mean.backward()
    assert torch.equal(student.grad.abs().sum(-1) > 0, kept)


def test_looks_count_what_is_selected_again():
    looks = Looks()
    first, second = torch.tensor([True, True, True, False]), torch.tensor([True, False, True, True])
    assert looks.look(0, first) is None
    assert looks.look(5, second) == pytest.approx(2 / 3)
    again = Looks()
    again.load_state_dict(looks.state_dict())
    assert again.look(10, second) == 1.0
    assert (again.steps, len(again.shares)) == ([5, 10], 2)


def test_a_histogram_counts_every_value():
    found = histogram(torch.cat([GAP, torch.tensor([1000.0, -1000.0])]), bins=8)
    assert sum(found["counts"]) == len(GAP) + 2
    assert len(found["edges"]) == 9
    assert found["edges"][0] > -10
    assert found["edges"] == sorted(found["edges"])
    assert sum(histogram(torch.zeros(5))["counts"]) == 5
