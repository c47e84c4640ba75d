"""Diff-Instruct: one update of the critic for each of the generator, without data."""

from __future__ import annotations


def test_it_takes_turns_without_data(run):
    found = run("diffusion/diff_instruct", "ring")
    cost = found.outcome.cost
    assert (cost["steps"], cost["critic_updates"]) == (12, 6)
    assert cost["teacher_queries"] == 6 * 16
    assert "real_images" not in cost
    assert {"critic_error", "early_sw2"} <= set(found.outcome.extra)
    assert len(found.column("dmd")) == len(found.column("critic/score")) == 6
    assert all(value > 0 for value in found.column("gap"))


def test_without_the_normalizer_the_gradient_is_the_gap(run):
    found = run("diffusion/diff_instruct", "ring", normalize=False)
    assert found.column("gap") == found.column("gradient")


def test_an_interrupted_training_goes_on(interrupted):
    interrupted("diffusion/diff_instruct", "ring", 3)
