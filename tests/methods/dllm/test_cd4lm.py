"""CD4LM: nested views, the two terms of the loss, the weight between them, and what is reported."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch.nn import functional as F

from kdbench.tracks.dllm.networks.base import carry_over
from kdbench.tracks.dllm.policies.basic import Threshold
from kdbench.tracks.dllm.policies.cad import Adaptive
from kdbench_methods.dllm import cd4lm

VOCABULARY, MASK = 9, 1


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def logits(seed, rows=5, length=7):
    values = torch.randn(rows, length, VOCABULARY, generator=generator(seed), dtype=torch.float64)
    values[..., MASK] = -torch.inf
    return values


def answer(rows=5, length=7):
    return torch.randint(2, VOCABULARY, (rows, length), generator=generator(9))


def test_sizes_of_long_responses():
    student, teacher = cd4lm.mask_sizes(100, 20000, generator())
    assert student.min() == 40
    assert student.max() == 89
    assert teacher.min() >= 12
    assert teacher.max() <= 60
    assert (teacher <= 0.7 * student + 1).all()
    assert (teacher >= 0.3 * student - 1).all()
    assert student.double().mean() == pytest.approx(64.5, abs=0.5)
    assert (teacher.double() / student).mean() == pytest.approx(0.49, abs=0.01)


def test_short_responses_are_masked_less_unless_told_otherwise():
    student, teacher = cd4lm.mask_sizes(12, 4000, generator())
    assert (student.min(), student.max()) == (4, 6)
    assert (teacher <= student).all()
    student, teacher = cd4lm.mask_sizes(10, 3, generator())
    assert (student.tolist(), teacher.tolist()) == ([2] * 3, [1] * 3)
    student, _ = cd4lm.mask_sizes(12, 4000, generator(), protect=False)
    assert student.max() == 10
    # at least max(2, ceil(L / 10))
    student, teacher = cd4lm.mask_sizes(3, 500, generator(), protect=False)
    assert set(student.tolist()) == {2}
    assert (teacher <= 2).all()


def test_the_teacher_sees_all_that_the_student_sees_and_independent_masks_do_not_say_so():
    text, sizes = answer(400, 32), cd4lm.mask_sizes(32, 400, generator())
    for masks, nested in (("nested", True), ("independent", False)):
        student, teacher = cd4lm.views(text, sizes, generator(3), masks)
        assert torch.equal(student.sum(1), sizes[0])
        assert torch.equal(teacher.sum(1), sizes[1])
        assert bool((teacher & ~student).any()) is not nested


def test_the_weight_is_held_and_falls_along_a_cosine():
    values = [cd4lm.consistency_weight(step, 100) for step in range(101)]
    assert values[:11] == [0.9] * 11
    assert all(a > b for a, b in itertools.pairwise(values[10:]))
    assert values[55] == pytest.approx(0.7)
    assert values[100] == pytest.approx(0.5)
    assert {cd4lm.consistency_weight(step, 100, 0.4, 0.4) for step in range(101)} == {0.4}


def test_with_weight_zero_it_is_masked_cross_entropy():
    mask = torch.rand(5, 7, generator=generator(4)) < 0.5
    said = logits(1).requires_grad_()
    terms = cd4lm.dscd_loss(said, logits(2), answer(), mask, 0.0)
    plain = F.cross_entropy(said[mask].float(), answer()[mask])
    assert terms["consistency"].item() == 0.0
    assert terms["reconstruction"].item() == pytest.approx(plain.item(), rel=1e-6)
    mine, its = (torch.autograd.grad(value, said)[0] for value in (sum(terms.values()), plain))
    assert torch.allclose(mine, its, atol=1e-7)


def test_equal_masks_and_weights_have_no_divergence():
    mask = torch.rand(5, 7, generator=generator(4)) < 0.5
    terms = cd4lm.dscd_loss(logits(1), logits(1), answer(), mask, 1.0)
    assert terms["consistency"].item() == 0.0
    assert terms["reconstruction"].item() == 0.0


def test_the_divergence_is_that_of_tempered_distributions_where_the_student_is_masked():
    mask, tau = torch.rand(5, 7, generator=generator(4)) < 0.5, 2.0
    student, teacher = logits(1), logits(2)
    p, q = (torch.softmax(z / tau, dim=-1) for z in (teacher, student))
    real = torch.arange(VOCABULARY) != MASK
    values = (p * (p.log() - q.log()))[..., real].sum(-1) * tau**2
    found = cd4lm.dscd_loss(student, teacher, answer(), mask, 1.0, tau)["consistency"]
    assert found.dtype == torch.float64
    assert found.item() == pytest.approx(values[mask].mean().item(), abs=1e-12)


def test_each_mean_is_clamped():
    mask = torch.ones(5, 7, dtype=torch.bool)
    far = logits(1).mul(60).requires_grad_()
    terms = cd4lm.dscd_loss(far, logits(2).mul(60), answer(), mask, 0.25)
    assert terms["consistency"].item() == 0.25 * 5
    assert terms["reconstruction"].item() == 0.75 * 5
    assert not torch.autograd.grad(sum(terms.values()), far)[0].any()


def test_the_token_itself_as_target_is_its_surprise_at_the_temperature():
    text, its = answer(), torch.rand(5, 7, generator=generator(5)) < 0.4
    student, tau = logits(1), 2.0
    said = carry_over(logits(2), text.masked_fill(its, MASK), MASK)
    shown = ~its
    found = cd4lm.dscd_loss(student, said, text, shown, 1.0, tau, clamp=100.0)["consistency"]
    surprise = -(student / tau).log_softmax(-1).gather(-1, text.unsqueeze(-1)).squeeze(-1)
    assert found.item() == pytest.approx(tau**2 * surprise[shown].mean().item(), abs=1e-12)


def test_a_job(run, monkeypatch):
    asked, made = [], []
    inner, decoder = cd4lm.views, cd4lm.PolicyDecoder

    def watched(text, sizes, draws, masks="nested"):
        asked.append(masks)
        return inner(text, sizes, draws, masks)

    def noted(net, policy):
        made.append(policy)
        return decoder(net, policy)

    monkeypatch.setattr(cd4lm, "views", watched)
    monkeypatch.setattr(cd4lm, "PolicyDecoder", noted)
    result = run("dllm/cd4lm", "fixed")
    cost, extra = result.outcome.cost, result.outcome.extra
    assert asked[:4] == ["nested"] * 4
    assert cost["steps"] == 4
    assert cost["teacher_queries"] == 16
    assert made == [Adaptive(0.8, 4, 0.5, None, made[0].points)]
    for ratio in (40, 65, 90):
        assert extra[f"kl_{ratio}"] > 0
        assert extra[f"kl_start_{ratio}"] > 0
    logged = result.column("consistency")
    assert len(logged) == 4
    assert all(math.isfinite(value) and value > 0 for value in logged)

    asked.clear()
    others = {"masks": "independent", "decoding": "threshold", "visible": "carry_over", "start": 0.0, "end": 0.0}
    ablation = run("dllm/cd4lm", "fixed", **others)
    assert asked[:4] == ["independent"] * 4
    assert isinstance(made[1], Threshold)
    assert ablation.column("consistency") == [0.0] * 4


def test_an_interrupted_job_goes_on_with_its_weight(interrupted):
    interrupted("dllm/cd4lm", "fixed", after=2)
