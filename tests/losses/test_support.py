"""Reverse KL on a support: what each mode is and what its gradient does, in float64."""

from __future__ import annotations

import pytest
import torch

from kdbench.losses.divergences import rkl
from kdbench.losses.support import mass, restricted, support_mask


@pytest.fixture
def logits():
    generator = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(7, 9, generator=generator, dtype=torch.float64) * 2 for _ in range(2))
    return student.requires_grad_(), teacher


def gradient(value, student):
    return torch.autograd.grad(value.sum(), student)[0]


def test_supports_are_the_most_probable_tokens_of_each_side(logits):
    student, teacher = logits
    masks = {name: support_mask(student, teacher, 3, name) for name in ("student", "teacher", "both")}
    assert masks["student"].sum(-1).tolist() == [3] * 7
    assert torch.equal(masks["both"], masks["student"] & masks["teacher"])
    for row in range(7):
        assert set(masks["teacher"][row].nonzero()[:, 0].tolist()) == set(teacher[row].topk(3).indices.tolist())


@pytest.mark.parametrize("support", ["student", "teacher", "both"])
def test_the_truncated_sum_drains_the_mass_of_the_support(logits, support):
    student, teacher = logits
    mask = support_mask(student, teacher, 3, support)
    extra = gradient(restricted(student, teacher, mask, "trunc"), student) - gradient(
        restricted(student, teacher, mask, "trunc_sg"), student
    )
    assert torch.allclose(extra, gradient(mass(student, mask), student), atol=1e-14)
    assert extra.abs().max() > 1e-3


@pytest.mark.parametrize("mode", ["trunc", "renorm", "tail"])
def test_on_the_whole_vocabulary_the_value_is_the_reverse_divergence(logits, mode):
    student, teacher = logits
    whole = torch.ones_like(student, dtype=torch.bool)
    assert torch.allclose(restricted(student, teacher, whole, mode), rkl(student, teacher), atol=1e-12)


@pytest.mark.parametrize("mode", ["trunc", "trunc_sg", "renorm", "tail", "inter_sg"])
def test_on_the_whole_vocabulary_the_gradient_is_that_of_the_reverse_divergence(logits, mode):
    student, teacher = logits
    whole = torch.ones_like(student, dtype=torch.bool)
    found = gradient(restricted(student, teacher, whole, mode), student)
    assert torch.allclose(found, gradient(rkl(student, teacher), student), atol=1e-12)


def test_the_tail_is_the_divergence_of_the_bucketed_distributions(logits):
    student, teacher = logits
    mask = support_mask(student, teacher, 3, "student")
    q, p = student.softmax(-1), teacher.softmax(-1)
    for row, value in enumerate(restricted(student, teacher, mask, "tail").tolist()):
        kept = mask[row]
        a = torch.cat([q[row][kept], q[row][~kept].sum()[None]])
        b = torch.cat([p[row][kept], p[row][~kept].sum()[None]])
        assert value == pytest.approx(float((a * (a / b).log()).sum()), abs=1e-12)
        assert value >= 0


def test_the_tail_never_exceeds_the_whole_divergence(logits):
    student, teacher = logits
    for k in (1, 3, 8):
        mask = support_mask(student, teacher, k, "student")
        assert bool((restricted(student, teacher, mask, "tail") <= rkl(student, teacher) + 1e-12).all())


def test_an_empty_intersection_contributes_nothing_and_stays_finite():
    student = torch.tensor([[9.0, 0.0, 0.0, 0.0]], dtype=torch.float64, requires_grad=True)
    teacher = torch.tensor([[0.0, 0.0, 0.0, 9.0]], dtype=torch.float64)
    mask = support_mask(student, teacher, 1, "both")
    assert not mask.any()
    value = restricted(student, teacher, mask, "inter_sg")
    assert value.tolist() == [0.0]
    assert gradient(value, student).abs().max() == 0


def test_bad_names_are_named(logits):
    student, teacher = logits
    with pytest.raises(ValueError, match="not 'mine'"):
        support_mask(student, teacher, 2, "mine")
    with pytest.raises(ValueError, match="not 'cut'"):
        restricted(student, teacher, torch.ones(7, 9, dtype=torch.bool), "cut")
