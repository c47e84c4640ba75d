"""Which predictions are committed, on small hand-made views."""

from __future__ import annotations

import math

import pytest
import torch

from kdbench.errors import ArtifactError
from kdbench.tracks.dllm.decoding import View
from kdbench.tracks.dllm.policies.base import DecodingPolicy
from kdbench.tracks.dllm.policies.basic import All, Factor, Threshold, TopK
from kdbench.tracks.dllm.policies.scores import best, first, ranks, score


def view(probs, candidates=None, generator=None):
    """Of distributions (B, L, V)."""
    probs = torch.tensor(probs)
    conf, x0 = probs.max(-1)
    there = torch.ones_like(x0, dtype=torch.bool) if candidates is None else torch.tensor(candidates)
    rows = len(x0)
    zeros = torch.zeros(rows, dtype=torch.int64)
    conf = conf.masked_fill(~there, -torch.inf)
    return View(x0, conf, probs, there, zeros[:, None].expand_as(x0), zeros, x0.shape[1], zeros, zeros, 0, 1, generator)


PROBS = [[[0.5, 0.5, 0.0], [0.9, 0.05, 0.05], [0.6, 0.2, 0.2], [0.97, 0.03, 0.0]]]


def chosen(policy, seen):
    return [row.nonzero().flatten().tolist() for row in policy.commit(seen)]


def test_scores_by_hand():
    seen = view(PROBS)
    assert score(seen, "margin")[0].tolist() == pytest.approx([0.0, 0.85, 0.4, 0.94])
    assert score(seen, "entropy")[0, 0].item() == pytest.approx(1 - math.log(2) / math.log(3))
    certain = view([[[1.0, 0.0, 0.0], [1 / 3, 1 / 3, 1 / 3]]])
    assert score(certain, "entropy")[0].tolist() == pytest.approx([1.0, 0.0], abs=1e-6)
    one, other = (score(view(PROBS, None, torch.Generator().manual_seed(0)), "random") for _ in range(2))
    assert torch.equal(one, other)
    assert ((one >= 0) & (one < 1)).all()
    with pytest.raises(ValueError, match="needs a generator"):
        score(seen, "random")


@pytest.mark.parametrize("order", ["confidence", "margin", "entropy", "random"])
def test_what_is_no_candidate_is_never_chosen(order):
    seen = view(PROBS, [[True, False, True, False]], torch.Generator().manual_seed(0))
    assert score(seen, order)[0, [1, 3]].tolist() == [-math.inf, -math.inf]
    for policy in (TopK(3, order), Threshold(0.01, order), Factor(50.0, order), All()):
        commit = policy.commit(seen)
        assert not (commit & ~seen.candidates).any()
        assert commit.any()


def test_the_most_confident_ones_are_committed():
    assert chosen(TopK(1), view(PROBS)) == [[3]]
    assert chosen(TopK(2), view(PROBS)) == [[1, 3]]
    assert chosen(TopK(9), view(PROBS)) == [[0, 1, 2, 3]]


def test_a_threshold_takes_all_above_it_and_the_best_one_otherwise():
    assert chosen(Threshold(0.9), view(PROBS)) == [[1, 3]]
    assert chosen(Threshold(0.6), view(PROBS)) == [[1, 2, 3]]
    assert chosen(Threshold(0.99), view(PROBS)) == [[3]]


def test_the_factor_takes_the_largest_number_that_it_allows():
    """(n + 1)(1 - c_n) for n = 1, ..., 4: 0.06, 0.3, 1.6, 2.5."""
    for factor, wanted in ((0.05, [3]), (0.1, [3]), (0.31, [1, 3]), (1.7, [1, 2, 3]), (3.0, [0, 1, 2, 3])):
        assert chosen(Factor(factor), view(PROBS)) == [wanted]


def test_equal_scores_are_taken_from_left_to_right():
    scores = torch.tensor([[0.5, 0.7, 0.5, 0.7]])
    assert ranks(scores).tolist() == [[2, 0, 3, 1]]
    assert best(scores, torch.ones(1, 4, dtype=torch.bool)).tolist() == [[False, True, False, False]]
    assert first(scores, torch.tensor([3]), torch.ones(1, 4, dtype=torch.bool)).tolist() == [[True, True, False, True]]


def test_frontiers_begin_with_the_most_careful_and_have_the_policy_itself():
    assert [point.gamma for point in Threshold(0.85).sweep()] == [0.99, 0.95, 0.9, 0.85, 0.8, 0.7, 0.5, 0.3]
    assert [point.k for point in TopK(5).sweep()][:6] == [1, 2, 3, 4, 5, 6]
    assert Factor(1.0).sweep()[0].factor == 0.25
    assert All().sweep() == [All()]


@pytest.mark.parametrize("policy", [TopK(3, "margin"), Threshold(0.8, "entropy", (0.9, 0.5)), Factor(0.7), All()])
def test_what_is_saved_is_the_same(policy, tmp_path):
    policy.save(tmp_path)
    again = DecodingPolicy.of_kind(policy.kind).load(tmp_path)
    assert chosen(again, view(PROBS)) == chosen(policy, view(PROBS))
    assert (again.kind, len(again.sweep())) == (policy.kind, len(policy.sweep()))


def test_unknown_and_double_kinds_are_said():
    with pytest.raises(ArtifactError, match="no policy is of kind 'treshold'"):
        DecodingPolicy.of_kind("treshold")
    with pytest.raises(TypeError, match="both have a policy of kind 'topk'"):
        type("Other", (DecodingPolicy,), {"kind": "topk", "__module__": "elsewhere"})
