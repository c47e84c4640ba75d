"""Guidance distilled into all weights."""

from __future__ import annotations


def test_it_takes_half_the_evaluations_and_learns_on_noised_data(run):
    found = run("diffusion/guidance_distill", "attributes", overrides={"limits": {"steps": 40}}, lr=0.005)
    guided = run("diffusion/teacher", "attributes")
    assert guided.outcome.metrics["nfe"] == 2 * found.outcome.metrics["nfe"]
    assert found.outcome.cost["teacher_queries"] == 2 * found.outcome.cost["real_images"]
    losses = found.column("loss")
    assert sum(losses[-10:]) < sum(losses[:10])
    assert found.outcome.extra["error_noised"] > 0
    assert found.outcome.extra["error_trajectory"] > 0


def test_the_scale_is_a_parameter(run):
    weak, strong = (run("diffusion/guidance_distill", "attributes", guidance=w) for w in (1.5, 5.0))
    assert weak.column("loss")[0] < strong.column("loss")[0]
