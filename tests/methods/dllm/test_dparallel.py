"""dParallel: two views of a block, certainty where the model is right, its own responses."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import torch
from torch.nn import functional as F

from kdbench.tracks.dllm.batches import Prompts
from kdbench.tracks.dllm.blocks.trajectories import Trajectories
from kdbench.tracks.dllm.networks.base import canvas_logits
from kdbench_methods.dllm import dparallel
from tests.tracks.dllm.conftest import MASK, VOCABULARY, predictor, some_prompts


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


LABELS = torch.randint(2, VOCABULARY, (9, 8), generator=generator(5))


def test_every_token_of_the_block_is_masked_in_exactly_one_view():
    labels = torch.randint(2, 12, (300, 12), generator=generator())
    (one, first), (other, second) = dparallel.two_views(labels, 4, 0.5, generator(1), MASK)
    assert not (first & second).any()
    block = first | second
    assert block.sum(1).tolist() == [4] * 300
    number = block.int().argmax(1) // 4
    place = torch.arange(12)
    assert torch.equal(block, place // 4 == number[:, None])
    assert torch.bincount(number, minlength=3).min() > 60  # every block, the first and the last, is drawn
    behind, before = place // 4 > number[:, None], place // 4 < number[:, None]
    for canvas, mask in ((one, first), (other, second)):
        assert (canvas[behind] == MASK).all()
        assert torch.equal(canvas[before], labels[before])
        assert (canvas[mask] == MASK).all()
        assert torch.equal(canvas[block & ~mask], labels[block & ~mask])
    assert first[block].double().mean() == pytest.approx(0.5, abs=0.05)


def test_the_last_block_may_be_shorter():
    (_, first), (_, second) = dparallel.two_views(LABELS, 5, 0.5, generator(1), MASK)
    assert set((first | second).sum(1).tolist()) == {5, 3}


def test_uncertainty_is_the_entropy_where_the_prediction_is_right():
    logits = torch.randn(4, 6, VOCABULARY, generator=generator(2), dtype=torch.float64)
    logits[..., MASK] = -torch.inf
    labels, mask = logits.argmax(-1), torch.rand(4, 6, generator=generator(3)) < 0.7
    labels[:, ::2] = (labels[:, ::2] + 1) % VOCABULARY
    p = torch.softmax(logits / 0.5, dim=-1)
    values = -torch.xlogy(p, p).sum(-1)
    right = mask & (logits.argmax(-1) == labels)
    assert 0 < right.sum() < mask.sum()
    assert dparallel.uncertainty(logits, labels, mask, 0.5).item() == pytest.approx(
        values[right].mean().item(), abs=1e-12
    )
    every = dparallel.uncertainty(logits, labels, mask, 0.5, "all")
    assert every.item() == pytest.approx(values[mask].mean().item(), abs=1e-12)


def test_where_nothing_is_right_there_is_no_gradient_and_where_something_is_it_is_finite_and_sharpens():
    logits = torch.randn(4, 6, VOCABULARY, generator=generator(2), dtype=torch.float64)
    logits[..., MASK] = -torch.inf
    logits.requires_grad_()
    mask, labels = torch.ones(4, 6, dtype=torch.bool), logits.argmax(-1)
    none = dparallel.uncertainty(logits, (labels + 1) % VOCABULARY, mask)
    assert none.item() == 0
    assert not torch.autograd.grad(none, logits)[0].any()
    slope = torch.autograd.grad(dparallel.uncertainty(logits, labels, mask), logits)[0]
    assert slope.isfinite().all()
    assert (slope.gather(-1, labels.unsqueeze(-1)) < 0).all()  # going down raises the logit of the prediction


@pytest.mark.parametrize("complement", [True, False])
def test_with_weight_zero_it_is_training_on_the_responses_block_by_block(complement):
    net, prompts = predictor().requires_grad_(True), some_prompts()
    params = dparallel.DparallelParams(weight=0.0)
    pairs = dparallel.two_views(LABELS, 4, 0.5, generator(4), MASK)[: 1 + complement]
    mine = sum(dparallel.forcing_loss(net, prompts, LABELS, pairs, params).values())
    its = sum(F.cross_entropy(canvas_logits(net, prompts, canvas)[mask], LABELS[mask]) for canvas, mask in pairs)
    assert mine.item() == pytest.approx(its.item(), rel=1e-6)
    weights = list(net.parameters())
    for one, other in zip(torch.autograd.grad(mine, weights), torch.autograd.grad(its, weights), strict=True):
        assert torch.allclose(one, other, atol=1e-6)


def test_the_weight_multiplies_both_entropies():
    net, prompts = predictor(), some_prompts()
    pairs = dparallel.two_views(LABELS, 4, 0.5, generator(4), MASK)
    own = canvas_logits(net, prompts, pairs[0][0]).argmax(-1)
    terms = dparallel.forcing_loss(net, prompts, own, pairs, dparallel.DparallelParams())
    parts = [dparallel.uncertainty(canvas_logits(net, prompts, canvas), own, mask) for canvas, mask in pairs]
    assert terms["certainty"].item() == pytest.approx(2 * sum(parts).item(), abs=1e-12)
    assert parts[0] > 0


def written(correct):
    count = len(correct)
    prompts = Prompts(torch.zeros(count, 3, dtype=torch.int64), torch.ones(count, 3, dtype=torch.bool))
    tokens = torch.arange(count)[:, None].expand(-1, 4)
    return Trajectories(prompts, tokens, tokens.clone(), torch.tensor(correct), tokens + 100)


@pytest.mark.parametrize(
    ("correct", "keep", "rows"),
    [
        ([True, False, True, True], "correct", [0, 2, 3]),
        ([True, False, True, True], "all", [0, 1, 2, 3]),
        ([False, False, True, False], "correct", [0, 1, 2, 3]),
    ],
)
def test_right_responses_are_kept_and_all_where_less_than_a_batch_is_right(correct, keep, rows):
    said = {}
    task = SimpleNamespace(
        trajectories=lambda count: written(correct),
        spec=SimpleNamespace(recipe=SimpleNamespace(batch_size=2)),
        log=lambda step, **values: said.update(values),
    )
    kept = dparallel.responses(task, dparallel.DparallelParams(keep=keep))
    assert kept.tokens[:, 0].tolist() == rows
    assert said["kept_share"] == len(rows) / 4
    assert float(said["correct_share"]) == sum(correct) / 4


def test_a_job(run, monkeypatch, tmp_path):
    labels, blocks = [], []
    inner = dparallel.two_views

    def watched(answer, block, ratio, draws, mask_id):
        labels.append(answer)
        blocks.append(block)
        return inner(answer, block, ratio, draws, mask_id)

    monkeypatch.setattr(dparallel, "two_views", watched)
    result = run("dllm/dparallel", "arith")
    extra = result.outcome.extra
    assert set(blocks) == {8}
    assert len(blocks) == 4
    assert result.outcome.cost["steps"] == 4
    assert result.outcome.cost["teacher_queries"] > 0  # its own responses were written by it
    curves = json.loads((tmp_path / "job0" / "artifacts" / "certainty.json").read_text())
    assert [extra[f"certainty_{share}"] for share in (0, 25, 50, 75)] == curves["student"]
    assert [extra[f"certainty_{share}_teacher"] for share in (0, 25, 50, 75)] == curves["teacher"]
    assert all(0 < value <= 1 for curve in curves.values() for value in curve)

    own = labels[:4]
    labels.clear()
    again = run("dllm/dparallel", "arith", labels="reference", block=4, complement=False, weight=0.0)
    assert set(blocks[4:]) == {4}
    assert not any(torch.equal(a, b) for a, b in zip(own, labels, strict=True))
    assert again.column("certainty") == [0.0] * 4
