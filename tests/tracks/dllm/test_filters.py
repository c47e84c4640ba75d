"""Filters of predictions, the policy that asks one, and the replays that one learns from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from torch import nn

from kdbench.errors import JobError
from kdbench.tracks.dllm.blocks.oracle import oracle_decode
from kdbench.tracks.dllm.blocks.replay import Seen, parts, replay, verdicts
from kdbench.tracks.dllm.decoders.policy import PolicyDecoder
from kdbench.tracks.dllm.decoding import decode
from kdbench.tracks.dllm.policies.base import DecodingPolicy
from kdbench.tracks.dllm.policies.basic import Threshold, TopK
from kdbench.tracks.dllm.policies.filters import BlockFilter, Learned, block_confidence

OPTIONS = {"length": 8, "block": 4}


def constant(block=4, scale=0.0, bias=0.0):
    """One linear map: each position's logit is ``scale`` times its confidence and ``bias``."""
    net = BlockFilter(block, layers=1).double()
    with torch.no_grad():
        net.net[0].weight.copy_(scale * torch.eye(block))
        net.net[0].bias.fill_(bias)
    return net.requires_grad_(False)


def test_a_filter_reads_a_whole_block_and_shorter_ones_as_if_the_rest_were_zero():
    torch.manual_seed(0)
    net = BlockFilter(6).double()
    c = torch.rand(3, 6, dtype=torch.float64, requires_grad=True)
    first, second = net.net[0], net.net[2]
    wanted = (c @ first.weight.T + first.bias).relu() @ second.weight.T + second.bias
    assert torch.allclose(net(c), wanted, atol=1e-14)
    (net(c)[0, 0]).backward()
    assert (c.grad[0] != 0).sum() > 1  # other positions say something about the first one
    assert torch.equal(net(c[:, :4]), net(torch.cat([c[:, :4], torch.zeros(3, 2)], dim=1))[:, :4])
    assert [type(part) for part in BlockFilter(4, layers=1).net] == [nn.Linear]
    with pytest.raises(JobError, match="blocks of 6 positions was asked about 7"):
        net(torch.rand(1, 7, dtype=torch.float64))


def test_a_filter_that_repeats_confidences_is_a_threshold(net, prompts):
    # sigmoid(40 (c - 0.6)) > 1/2 where c > 0.6
    learned = decode(net, prompts, Learned(constant(scale=40, bias=-24), 0.5), **OPTIONS)
    by_hand = decode(net, prompts, Threshold(0.6), **OPTIONS)
    assert torch.equal(learned.tokens, by_hand.tokens)
    assert torch.equal(learned.steps, by_hand.steps)


def test_a_filter_that_accepts_nothing_writes_one_token_per_step_and_one_that_accepts_all_a_block(net, prompts):
    nothing = decode(net, prompts, Learned(constant(bias=-9), 0.5), **OPTIONS)
    assert torch.equal(nothing.steps, decode(net, prompts, TopK(1), **OPTIONS).steps)
    assert decode(net, prompts, Learned(constant(bias=9), 0.5), **OPTIONS).forwards.tolist() == [2] * 9


@dataclass(frozen=True, eq=False)
class ByText(DecodingPolicy):
    """Commits what agrees with a text, everything where nothing does."""

    text: torch.Tensor
    kind: ClassVar[str] = ""

    def commit(self, view):
        right = (view.x0 == self.text) & view.candidates
        return torch.where(right.any(dim=1, keepdim=True), right, view.candidates)


def test_a_filter_is_shown_in_decoding_what_it_was_shown_in_training(net, prompts):
    text = decode(net, prompts, TopK(1), **OPTIONS).tokens
    compared = 0
    for row in range(len(prompts)):
        one = prompts[row : row + 1]
        written, rows = oracle_decode(net, one, text[row : row + 1], **OPTIONS, log=True)
        if written.extra["copied"].any():  # from there on the texts differ
            continue
        shown = []
        decode(
            net, one, ByText(text[row]), **OPTIONS, observe=lambda view, _, to=shown: to.append(block_confidence(view))
        )
        assert torch.allclose(torch.cat(shown).float(), rows.confidence, atol=1e-6)
        compared += len(shown)
        assert (rows.confidence > 0).all()  # committed positions have confidences, too
    assert compared > 10


def test_what_is_saved_writes_the_same(net, prompts, tmp_path):
    torch.manual_seed(1)
    policy = Learned(BlockFilter(4).double().requires_grad_(False), 0.45, (0.9, 0.3))
    policy.save(tmp_path)
    again = DecodingPolicy.of_kind("learned").load(tmp_path)
    assert torch.equal(decode(net, prompts, policy, **OPTIONS).steps, decode(net, prompts, again, **OPTIONS).steps)
    assert [point.theta for point in again.sweep()] == [0.9, 0.45, 0.3]
    assert PolicyDecoder(net, again).networks().keys() == {"net", "filter"}


# --- replays ----------------------------------------------------------------------------------------------------------


def test_a_replay_has_a_row_for_every_forward_and_no_more_forwards_than_tokens(make):
    task = make(evaluation={"batch_size": 4})
    written = task.trajectories(10)
    again, rows = replay(task, task.teacher(), written.prompts, written.tokens)
    assert torch.equal(again.tokens, written.tokens)
    assert (again.forwards <= task.length).all()
    assert torch.bincount(rows.prompt, minlength=10).tolist() == again.forwards.tolist()
    assert rows.confidence.shape == (len(rows), task.block)
    for prompt in range(10):  # nothing is written at the first forward, and something at each
        left = rows.masked[rows.prompt == prompt].sum(1)
        assert left[0] == task.block
        assert (left.diff() < 0).all()


def some_rows(prompts=20, each=3, block=4):
    torch.manual_seed(0)
    count = prompts * each
    correct, masked = torch.rand(count, block) < 0.5, torch.rand(count, block) < 0.7
    return Seen(torch.rand(count, block), correct, masked, torch.arange(prompts).repeat(each))


def test_no_prompt_is_on_two_sides():
    rows = some_rows()
    sides = parts(rows, 20, torch.Generator().manual_seed(0))
    assert [len(set(side.prompt.tolist())) for side in sides] == [16, 2, 2]
    assert sum(len(side) for side in sides) == len(rows)
    everyone = [prompt for side in sides for prompt in set(side.prompt.tolist())]
    assert sorted(everyone) == list(range(20))
    with pytest.raises(ValueError, match="2 prompts cannot be split in three"):
        parts(rows, 2, torch.Generator())


def test_verdicts_count_masked_positions_alone():
    correct = torch.tensor([[True, False, True, True]])
    masked = torch.tensor([[True, True, True, False]])
    rows = Seen(torch.zeros(1, 4), correct, masked, torch.zeros(1, dtype=torch.int64))
    assert verdicts(torch.tensor([[True, True, False, True]]), rows) == (0.5, 0.5)
    assert verdicts(torch.zeros(1, 4, dtype=torch.bool), rows) == (0.0, 0.0)
    assert verdicts(torch.ones(1, 4, dtype=torch.bool), rows) == (pytest.approx(1 / 3), 1.0)
