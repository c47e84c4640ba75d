"""Hyper-SD: how its updates are spent, one adapter or several, and its optional parts."""

from __future__ import annotations

import json

import pytest

from kdbench_methods.diffusion.hyper_sd import HyperSdParams, split_steps

METHOD = "diffusion/hyper_sd"
PLAIN = {"feedback": 0.0, "scores": 0.0, "gan_weight": 0.0}


def test_the_updates_are_shared_by_stages_feedback_and_scores():
    assert split_steps(500, HyperSdParams(fraction=1.0)) == ({8: 75, 4: 75, 2: 75, 1: 75}, 50, 150)
    assert split_steps(503, HyperSdParams(fraction=1.0, **PLAIN)) == ({8: 125, 4: 125, 2: 125, 1: 128}, 0, 0)
    assert split_steps(500, HyperSdParams()) == ({8: 30, 4: 30, 2: 30, 1: 30}, 20, 60)
    assert split_steps(150, HyperSdParams(**PLAIN)) == ({8: 25, 4: 25, 2: 25, 1: 25}, 0, 0)
    assert split_steps(100, HyperSdParams(first=1, **PLAIN)) == ({1: 100}, 0, 0)
    assert split_steps(12, HyperSdParams()) == ({8: 2, 4: 2, 2: 2, 1: 2}, 1, 3)
    assert split_steps(6, HyperSdParams()) == ({4: 2, 2: 2, 1: 2}, 0, 0)  # too few for the other parts
    assert split_steps(1, HyperSdParams()) == ({1: 1}, 0, 0)


def test_every_part_trains_and_one_adapter_serves_all_numbers_of_steps(run, tmp_path):
    found = run(METHOD, "digits")
    cost, extra = found.outcome.cost, found.outcome.extra
    assert cost["steps"] == 12
    assert cost["critic_updates"] == 1 + 1 + 2  # discriminators of the last two stages, and the critic
    for name in ("n8/loss", "n4/loss", "n2/gan", "n1/gan", "feedback/aesthetic", "scores/dmd", "scores/anchor"):
        assert found.column(name), name
    assert len(found.column("stage/fd")) == 4
    assert {f"fd_nfe{count}" for count in (1, 2, 4, 8)} < set(extra)
    assert found.outcome.metrics["nfe"] == 1
    rows = json.loads(next(tmp_path.rglob("steps.json")).read_text())
    assert sorted(rows, key=int) == ["1", "2", "4", "8"]


def test_each_stage_keeps_its_adapter_where_they_are_separate(run):
    found = run(METHOD, "digits", lora="separate", nfe=4, **PLAIN)
    assert found.outcome.metrics["nfe"] == 4
    assert found.outcome.cost["steps"] == 12
    kept = dict(zip((8, 4, 2, 1), found.column("stage/fd"), strict=True))
    for count, value in kept.items():  # what was measured after a stage is what is evaluated
        assert found.outcome.extra[f"fd_nfe{count}"] == pytest.approx(value)
    one = run(METHOD, "digits", first=1, **PLAIN)
    assert list(one.column("stage/fd")) == [one.outcome.extra["fd_nfe1"]]


def test_an_interrupted_stage_goes_on(interrupted):
    interrupted(METHOD, "digits", 3, feedback=0.0, scores=0.0)
