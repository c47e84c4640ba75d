"""BOOT: data-free, its queries of the teacher, its boundary."""

from __future__ import annotations

import pytest


def test_no_image_and_one_query_a_step_beside_the_boundary(run):
    job = run("diffusion/boot", "ring")
    cost = job.outcome.cost
    assert "real_images" not in cost
    assert cost["teacher_queries"] == 2 * cost["samples"]
    assert job.outcome.metrics["nfe"] == 1
    assert {"trajectory_error", "endpoint_error", "teacher_sw2"} <= set(job.outcome.extra)
    assert job.column("boundary")
    free = run("diffusion/boot", "ring", boundary=0.0, heun=True)
    assert not free.column("boundary")
    assert free.outcome.cost["teacher_queries"] == 2 * cost["samples"]


def test_guidance_is_inside_the_teacher(run):
    plain, guided = (run("diffusion/boot", "ring", guidance=w) for w in (1.0, 3.0))
    assert guided.outcome.cost["teacher_queries"] == 2 * plain.outcome.cost["teacher_queries"]
    assert guided.outcome.metrics["sw2"] != plain.outcome.metrics["sw2"]
    assert guided.outcome.metrics["nfe"] == 1


@pytest.mark.parametrize("task", ["digits-dit", "ring-flow"])
def test_other_processes_and_shapes(run, task):
    assert run("diffusion/boot", task, grid=8, most_step=100).outcome.metrics["nfe"] == 1


def test_targets_may_start_from_an_average(interrupted):
    whole, _ = interrupted("diffusion/boot", "ring", 6, half_life=100.0)
    assert whole.cost["teacher_queries"] == 2 * whole.cost["samples"]
