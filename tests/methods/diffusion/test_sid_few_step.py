"""SiD of few steps: steps, guidance, data."""

from __future__ import annotations

import pytest

from kdbench.cache import Cache
from kdbench_methods.diffusion import sid_few_step
from tests.helpers.denoisers import smoke_task


def test_four_steps_without_data_and_what_each_of_them_gives(run):
    found = run("diffusion/sid_few_step", "digits")
    assert found.outcome.metrics["nfe"] == 4
    assert {f"fd_step{number}" for number in range(1, 5)} <= set(found.outcome.extra)
    assert found.outcome.cost.get("real_images", 0) == 0
    assert found.outcome.cost["critic_updates"] == 6


def test_times_fall_evenly_to_zero_along_a_straight_line(tmp_path):
    task = smoke_task("ring-flow", tmp_path / "job", Cache(tmp_path / "cache"))
    sampler = sid_few_step.train(task, sid_few_step.SidFewStepParams(steps=4, start=0.8))
    assert sampler.times == pytest.approx([0.8, 0.6, 0.4, 0.2])
    assert sampler.mode == "renoise"


@pytest.mark.parametrize(("strategy", "queries"), [("lsg", 2), ("zero", 1), ("anti", 1)])
def test_only_equal_guidance_guides_the_teacher(run, strategy, queries):
    found = run("diffusion/sid_few_step", "attributes", strategy=strategy, guidance=3.0)
    assert found.outcome.cost["teacher_queries"] == 6 * 8 * queries


def test_the_adversary_reads_real_images(run):
    found = run("diffusion/sid_few_step", "digits", gan_weight=0.01, steps=2)
    assert found.outcome.cost["real_images"] == 12 * 8
    assert len(found.column("gan")) == len(found.column("critic/gan")) == 6


def test_an_interrupted_training_goes_on(interrupted):
    interrupted("diffusion/sid_few_step", "digits", 3, steps=2, gan_weight=0.01)
