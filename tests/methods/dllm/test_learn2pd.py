"""Learning to Parallel: what the filter learns from, that it reads whole blocks, and the end of the text."""

from __future__ import annotations

import pytest
import torch

from kdbench.tracks.dllm.blocks.replay import Seen, verdicts
from kdbench.tracks.dllm.policies.filters import BlockFilter
from kdbench_methods.dllm import learn2pd


def rows_of(confidence, correct):
    count = len(confidence)
    return Seen(confidence, correct, torch.ones_like(correct), torch.arange(count))


def test_the_loss_is_the_mean_over_all_positions_committed_ones_included():
    torch.manual_seed(0)
    net, c = BlockFilter(4), torch.rand(6, 4)
    correct, masked = torch.rand(6, 4) < 0.5, torch.rand(6, 4) < 0.5
    p = net(c).sigmoid()
    by_hand = -(torch.where(correct, p, 1 - p)).log().mean()
    assert learn2pd.filter_loss(net, Seen(c, correct, masked, torch.arange(6))).item() == pytest.approx(
        by_hand.item(), rel=1e-5
    )


def test_it_learns_what_no_threshold_on_a_position_can_say():
    """A prediction is right where its right neighbour is sure, whatever its own confidence."""
    torch.manual_seed(0)
    c = torch.rand(2000, 6)
    rows = rows_of(c, c.roll(-1, dims=1) > 0.5)
    net = BlockFilter(6)
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-2)
    for _ in range(400):
        optimizer.zero_grad()
        learn2pd.filter_loss(net, rows).backward()
        optimizer.step()
    fresh = torch.rand(2000, 6)
    seen = rows_of(fresh, fresh.roll(-1, dims=1) > 0.5)
    wrong, found = verdicts(net(fresh).sigmoid() > 0.5, seen)
    assert wrong < 0.2
    assert found > 0.8
    by_threshold = [verdicts(fresh > level, seen)[0] for level in (0.3, 0.6, 0.9)]
    assert min(by_threshold) > 0.4


def test_a_job_trains_a_filter_and_nothing_else(run, monkeypatch):
    seen, inner = [], learn2pd.filter_loss

    def watched(net, rows):
        if torch.is_grad_enabled():
            seen.append(rows)
        return inner(net, rows)

    monkeypatch.setattr(learn2pd, "filter_loss", watched)
    result = run("dllm/learn2pd", "fixed")
    cost, extra = result.outcome.cost, result.outcome.extra
    assert cost.get("steps", 0) == 0
    assert cost["aux_steps"] == round(6.7 * 4)
    assert cost["teacher_queries"] > 48 * 12  # all responses, and their replays
    assert {len(rows) for rows in seen} == {len(seen[0])}  # every step has all rows
    assert not seen[0].masked.all()
    assert extra["oracle_nfe"] <= 12
    for name in ("false_commit", "found", "eotp_changed"):
        assert 0 <= extra[name] <= 1
    assert result.outcome.metrics["nfe"] <= 12
    for name in ("filter_val", "held_false_commit", "held_found"):
        assert len(result.column(name)) == 1

    seen.clear()
    run("dllm/learn2pd", "fixed", rows="first", layers=1)
    assert seen[0].masked.all()  # the first forward of a block, as nothing of it is written


def test_all_rows_of_a_job_are_predictions_of_an_oracle(run, monkeypatch):
    found = []
    inner = learn2pd.replay

    def watched(task, net, prompts, text):
        written, rows = inner(task, net, prompts, text)
        found.append((text, written.tokens, rows))
        return written, rows

    monkeypatch.setattr(learn2pd, "replay", watched)
    run("dllm/learn2pd", "arith", prompts=12)
    text, tokens, rows = found[0]
    assert len(text) == 12
    assert torch.equal(text, tokens)
    # what was right and masked at one forward is written at the next one of the same block
    for prompt in range(3):
        mine = rows[rows.prompt == prompt]
        for now in range(len(mine) - 1):
            right = mine.correct[now] & mine.masked[now]
            if right.any() and mine.masked[now + 1].sum() < mine.masked[now].sum():
                assert torch.equal(mine.masked[now + 1], mine.masked[now] & ~right)


@pytest.mark.parametrize("eotp", ["eos", "never"])
def test_an_end_that_waits_for_what_is_before_it_changes_nothing(run, eotp):
    extra = run("dllm/learn2pd", "fixed", eotp=eotp, theta=0.3).outcome.extra
    assert extra["eotp_changed"] == 0
    assert extra["eotp_saved"] >= 0 if eotp == "eos" else extra["eotp_saved"] == 0


def test_an_interrupted_filter_goes_on(interrupted):
    interrupted("dllm/learn2pd", "fixed", after=11)
