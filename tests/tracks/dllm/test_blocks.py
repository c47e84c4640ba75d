"""Masks, objectives, trajectories, calibration and the area under the curve."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from kdbench.tracks.dllm.batches import Batch, Prompts
from kdbench.tracks.dllm.blocks.certainty import ece
from kdbench.tracks.dllm.blocks.masking import (
    antithetic,
    block_view,
    canvas_of,
    complementary,
    mask_random,
    nested_masks,
)
from kdbench.tracks.dllm.blocks.objectives import causal_loss, ce_at, mdm_loss, mean_at
from kdbench.tracks.dllm.blocks.trajectories import Trajectories
from kdbench.tracks.dllm.decoding import decode
from kdbench.tracks.dllm.evaluate.aup import aup, counted, weight
from kdbench.tracks.dllm.networks.base import canvas_logits
from kdbench.tracks.dllm.policies.basic import TopK
from tests.tracks.dllm.conftest import EOS, MASK, VOCABULARY, predictor, some_prompts


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


ANSWER = torch.arange(2, 10).expand(6, 8)


# --- masks ------------------------------------------------------------------------------------------------------------


def test_levels_are_spread_evenly():
    levels = antithetic(10, 0.2, 1.2, generator())
    gaps = levels.sort().values.diff()
    assert gaps.tolist() == pytest.approx([0.1] * 9, abs=1e-6)
    assert levels.min() >= 0.2
    assert levels.max() < 1.2
    assert levels.tolist() != levels.sort().values.tolist()


def test_the_share_of_masked_positions_is_the_ratio_and_no_row_has_none():
    answer = torch.zeros(4000, 10, dtype=torch.int64)
    mask = mask_random(answer, 0.3, generator())
    # with 0.7 ** 10 a row would have none and gets one
    wanted = 0.3 + 0.7**10 / 10
    assert abs(mask.double().mean() - wanted) < 4 * (0.21 / 40000) ** 0.5
    assert mask.any(dim=1).all()
    assert mask_random(answer, 1e-9, generator()).sum(1).tolist() == [1] * 4000
    ratios = torch.tensor([0.0, 1.0])
    assert mask_random(ANSWER[:2], ratios, generator()).sum(1).tolist() == [1, 8]


def test_nested_masks_have_their_counts_and_are_nested():
    student, teacher = torch.tensor([5, 8, 3, 1]), torch.tensor([2, 8, 0, 1])
    big, small = nested_masks(8, student, teacher, generator())
    assert big.sum(1).tolist() == student.tolist()
    assert small.sum(1).tolist() == teacher.tolist()
    assert not (small & ~big).any()
    many = nested_masks(8, torch.full((4000,), 3), torch.full((4000,), 1), generator())[0]
    assert (many.double().mean(0) - 3 / 8).abs().max() < 0.04


def test_a_block_as_a_decoder_meets_it():
    inside = torch.rand(6, 8, generator=generator()) < 0.5
    number = torch.tensor([0, 1, 0, 1, 1, 0])
    canvas, masked = block_view(ANSWER, 4, number, inside, MASK)
    for row, block in enumerate(number.tolist()):
        for place in range(8):
            if place // 4 < block:
                assert canvas[row, place] == ANSWER[row, place]
            elif place // 4 > block:
                assert canvas[row, place] == MASK
                assert not masked[row, place]
            else:
                assert (canvas[row, place] == MASK) == masked[row, place] == inside[row, place]


def test_complementary_masks_share_the_block_between_them():
    within = torch.zeros(6, 8, dtype=torch.bool)
    within[:, 2:6] = True
    mask = mask_random(ANSWER, 0.5, generator()) & within
    other = complementary(mask, within)
    assert not (mask & other).any()
    assert torch.equal(mask | other, within)


# --- objectives -------------------------------------------------------------------------------------------------------


class Table(nn.Module):
    """Fixed logits for each position, whatever is read."""

    def __init__(self, table):
        super().__init__()
        self.table = nn.Parameter(table)

    def forward(self, ids, present=None):
        prompt = ids.shape[1] - len(self.table)
        return torch.cat([torch.zeros(len(ids), prompt, self.table.shape[1]), self.table.expand(len(ids), -1, -1)], 1)


def test_the_bound_of_a_network_that_reads_nothing_is_its_cross_entropy():
    """Each position is masked with probability t and divided by t: the mean over masks is the mean over positions."""
    table = torch.randn(8, VOCABULARY, generator=generator())
    net, rows = Table(table), 6000
    batch = Batch(
        some_prompts(1)[torch.zeros(rows, dtype=torch.int64)], ANSWER[:1].expand(rows, -1), torch.arange(rows)
    )
    wanted = nn.functional.cross_entropy(table, ANSWER[0])
    found = mdm_loss(net, batch, generator(), mask_id=MASK, t_min=0.3)
    assert found.item() == pytest.approx(wanted.item(), rel=0.02)


def test_only_masked_positions_are_scored():
    logits = torch.randn(6, 8, VOCABULARY, generator=generator()).requires_grad_()
    mask = mask_random(ANSWER, 0.4, generator(1))
    values = ce_at(logits, ANSWER, mask)
    assert (values[~mask] == 0).all()
    values.sum().backward()
    assert (logits.grad[~mask] == 0).all()
    assert mean_at(values.detach(), mask) == pytest.approx(values[mask].mean().item())
    assert mean_at(values.detach(), mask & False) == 0


def test_the_causal_loss_is_of_the_next_token():
    net = predictor(causal=True)
    prompts = some_prompts(6)
    prompts = Prompts(prompts.ids, torch.ones_like(prompts.present))
    batch = Batch(prompts, ANSWER, torch.arange(6))
    found = causal_loss(net, batch)
    sums = 0.0
    for place in range(8):
        ids = torch.cat([prompts.ids, ANSWER[:, :place]], 1)
        sums += nn.functional.cross_entropy(net(ids)[:, -1], ANSWER[:, place])
    assert found.item() == pytest.approx(sums.item() / 8, rel=1e-6)


# --- trajectories -----------------------------------------------------------------------------------------------------


def test_canvases_of_a_trajectory_are_those_that_were_decoded(net, prompts):
    canvases = []
    written = decode(
        net, prompts, TopK(1), length=8, block=4, observe=lambda view, _: canvases.append(view.canvas.clone())
    )
    known = Trajectories(
        prompts, written.tokens, written.steps, torch.ones(len(prompts), dtype=torch.bool), written.tokens
    )
    assert known.lengths.tolist() == [8] * len(prompts)
    for step, canvas in enumerate(canvases):
        assert torch.equal(known.canvas(torch.full((len(prompts),), step), MASK), canvas)
    assert torch.equal(known.canvas(known.lengths, MASK), written.tokens)
    # and the network commits there what it did
    for step, canvas in enumerate(canvases):
        said = canvas_logits(net, prompts, canvas).argmax(-1)
        new = written.steps == step
        assert torch.equal(said[new], written.tokens[new])


def test_some_of_the_trajectories(net, prompts):
    written = decode(net, prompts, TopK(1), length=8, block=4)
    right = torch.arange(len(prompts)) % 2 == 0
    known = Trajectories(prompts, written.tokens, written.steps, right, written.tokens)
    assert len(known.only(right)) == int(right.sum())
    sizes = [len(batch) for batch in known.loader(4, generator())]
    assert sizes == [4, 4, 1]


# --- calibration ------------------------------------------------------------------------------------------------------


def test_calibration_errors():
    sure = torch.tensor([0.95] * 20)
    assert ece(sure, torch.tensor([True] * 19 + [False])) == pytest.approx(0.0, abs=1e-6)
    assert ece(sure, torch.zeros(20, dtype=torch.bool)) == pytest.approx(0.95, abs=1e-6)
    halves = torch.tensor([0.25] * 10 + [0.95] * 10)
    assert ece(halves, torch.ones(20, dtype=torch.bool)) == pytest.approx((0.75 + 0.05) / 2, abs=1e-6)
    assert ece(torch.ones(4), torch.ones(4, dtype=torch.bool)) == 0
    assert ece(torch.zeros(0), torch.zeros(0, dtype=torch.bool)) == 0


# --- the area under the curve -----------------------------------------------------------------------------------------


def test_the_area_by_hand():
    points = [(1.0, 80.0), (2.0, 78.0), (4.0, 76.0)]
    best = 90.0
    weights = [math.exp(-3 * (1 - y / best)) for _, y in points]
    wanted = 80 + 0.5 * (78 * weights[1] + 80 * weights[0]) + 0.5 * 2 * (76 * weights[2] + 78 * weights[1])
    assert aup(points, best) == pytest.approx(wanted)
    assert aup(points[::-1], best) == pytest.approx(wanted)


def test_points_far_below_the_first_count_for_nothing_wherever_they_are():
    assert aup([(1, 80), (2, 74.9)], 80) == 80
    assert aup([(1, 80), (2, 10), (3, 80)], 80) == pytest.approx(aup([(1, 80), (3, 80)], 80)) == pytest.approx(240)
    assert counted([(1, 80), (2, 75), (3, 74)]) == [(1, 80), (2, 75)]


def test_a_curve_of_one_point_and_of_none():
    assert aup([(2.5, 60)], 80) == 150
    assert aup([(2.5, 60), (2.5, 55)], 80) == 150
    with pytest.raises(ValueError, match="needs a point"):
        aup([], 80)


def test_weights():
    assert weight(80, 80) == weight(90, 80) == 1
    assert weight(0, 80) == pytest.approx(math.exp(-3))
    assert weight(0, 0) == 0
    assert aup([(1, 0), (3, 0)], 0) == 0


def test_lengths_end_with_the_first_end(net, prompts):
    written = decode(net, prompts, TopK(1), length=8, block=4)
    written.tokens = torch.tensor([[5, 5, EOS, 5, 5, 5, 5, 5], [5] * 8, [EOS] * 8])
    assert written.lengths(EOS).tolist() == [3, 8, 1]
    assert canvas_of(torch.tensor([[3, 4]]), torch.tensor([[True, False]]), MASK).tolist() == [[MASK, 4]]
