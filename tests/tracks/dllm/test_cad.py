"""Confidence-adaptive decoding: how many positions are committed, when ends are barred, and the cap of a block."""

from __future__ import annotations

import pytest
import torch

from kdbench.tracks.dllm.decoding import View, decode
from kdbench.tracks.dllm.policies.base import DecodingPolicy
from kdbench.tracks.dllm.policies.basic import Threshold
from kdbench.tracks.dllm.policies.cad import Adaptive
from tests.tracks.dllm.conftest import EOS, MASK, VOCABULARY

WORD = 5


def view(conf, x0=None, canvas=None, block_step=0):
    """One row of one block; what stands on the canvas is no candidate."""
    conf = torch.tensor([conf], dtype=torch.float64)
    canvas = torch.full(conf.shape, MASK) if canvas is None else torch.tensor([canvas])
    x0 = torch.full(conf.shape, WORD) if x0 is None else torch.tensor([x0])
    free = canvas == MASK
    count = torch.zeros(1, dtype=torch.int64)
    return View(
        x0=x0,
        conf=conf.masked_fill(~free, -torch.inf),
        probs=torch.zeros(*conf.shape, VOCABULARY),
        candidates=free,
        canvas=canvas,
        start=count,
        size=conf.shape[1],
        step=count + block_step,
        block_step=count + block_step,
        eos=EOS,
        mask=MASK,
    )


def committed(policy, seen):
    return policy.commit(seen)[0].nonzero().flatten().tolist()


@pytest.mark.parametrize(
    ("gamma", "most", "places"),
    [(0.5, 4, [0, 2, 3]), (0.5, 2, [0, 3]), (0.99, 4, [3]), (0.01, 4, [0, 2, 3, 5]), (0.9, 1, [3]), (0.8, 4, [0, 3])],
)
def test_those_that_reach_the_threshold_between_one_and_the_ceiling(gamma, most, places):
    assert committed(Adaptive(gamma, most), view([0.8, 0.1, 0.6, 0.95, 0.2, 0.3])) == places


def test_ends_are_barred_until_half_of_the_canvas_is_written():
    conf, x0 = [0.99, 0.9, 0.3, 0.2, 0.1, 0.1], [EOS, WORD, EOS, WORD, WORD, WORD]
    assert committed(Adaptive(0.8), view(conf, x0)) == [1]
    assert committed(Adaptive(0.8, gate=0.0), view(conf, x0)) == [0, 1]
    half = [MASK, MASK, MASK, 7, 7, 7]
    assert committed(Adaptive(0.8), view(conf, x0, half)) == [0, 1]
    less = [MASK, MASK, MASK, MASK, 7, 7]
    assert committed(Adaptive(0.8), view(conf, x0, less)) == [1]


def test_where_all_are_barred_the_surest_end_is_committed():
    assert committed(Adaptive(0.5), view([0.6, 0.9, 0.7], [EOS] * 3)) == [1]


def test_the_last_forward_of_a_capped_block_commits_all_that_is_left():
    sure = [0.1, 0.2, 0.3, 0.4]
    assert committed(Adaptive(0.9, cap=2), view(sure)) == [3]
    assert committed(Adaptive(0.9, cap=2), view(sure, [EOS, WORD, WORD, WORD], block_step=1)) == [0, 1, 2, 3]


def test_decoding_with_it(net, prompts):
    options = {"length": 8, "block": 4}
    free = Adaptive(0.6, most=4, gate=0.0)
    same = decode(net, prompts, Threshold(0.6), **options)
    assert torch.equal(decode(net, prompts, free, **options).steps, same.steps)  # a block has four positions
    for cap in (1, 2, 4):
        assert decode(net, prompts, Adaptive(1.0, cap=cap, gate=0.0), **options).forwards.tolist() == [2 * cap] * 9
    two = decode(net, prompts, Adaptive(0.01, most=2, gate=0.0), **options)
    assert two.forwards.tolist() == [4] * 9
    # with the gate no end is written before four other tokens are, unless nothing but ends is predicted
    gated = decode(net, prompts, Adaptive(0.3, gate=0.5), **options)
    assert (gated.forwards >= decode(net, prompts, Adaptive(0.3, gate=0.0), **options).forwards.min()).all()


def test_the_frontier_and_what_is_saved(tmp_path):
    policy = Adaptive(0.85, 3, 0.25, 6, (0.9, 0.5))
    assert [point.gamma for point in policy.sweep()] == [0.9, 0.85, 0.5]
    assert {(point.most, point.gate, point.cap) for point in policy.sweep()} == {(3, 0.25, 6)}
    policy.save(tmp_path)
    again = DecodingPolicy.of_kind("cad").load(tmp_path)
    assert (again.gamma, again.most, again.gate, again.cap) == (0.85, 3, 0.25, 6)
    assert [point.gamma for point in again.sweep()] == [0.9, 0.85, 0.5]
