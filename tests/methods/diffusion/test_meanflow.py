"""Mean velocities on data: what they read, and data that are not the teacher's."""

from __future__ import annotations

import pytest


def test_it_reads_data_and_one_query_a_row(run):
    job = run("diffusion/meanflow", "ring-flow", guidance=1.0)
    assert job.outcome.cost["real_images"] == job.outcome.cost["samples"] == job.outcome.cost["teacher_queries"]
    assert job.outcome.metrics["nfe"] == 1
    assert {"endpoint_error", "teacher_sw2"} <= set(job.outcome.extra)
    other = run("diffusion/meanflow", "ring-flow", guidance=1.0, mismatch=0.5, steps=2)
    assert other.outcome.metrics["nfe"] == 2
    assert other.column("loss") != job.column("loss")


@pytest.mark.parametrize("task", ["ring", "digits"])
def test_without_a_teacher_and_on_other_processes(run, task):
    job = run("diffusion/meanflow", task, velocity="data", instant=0.0)
    assert "teacher_queries" not in job.outcome.cost
