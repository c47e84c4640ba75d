"""Regression onto the ends of the teacher's flow."""

from __future__ import annotations

SMALL = {"pairs": 40, "steps": 2}


def test_the_distance_to_the_teacher_s_ends_falls(run):
    found = run("diffusion/regression_kd", "ring", overrides={"limits": {"steps": 60}}, lr=0.02, **SMALL)
    losses = found.column("loss")
    assert sum(losses[-5:]) < 0.7 * sum(losses[:5])
    assert found.outcome.metrics["nfe"] == 1
    assert found.outcome.cost["teacher_queries"] == 40 * 2  # two Euler steps
    assert found.outcome.cost.get("real_images", 0) == 0


def test_pairs_are_shared_by_jobs_and_paid_for_by_each(run):
    first = run("diffusion/regression_kd", "ring", **SMALL)
    other = run("diffusion/regression_kd", "ring", seed=1, metric="huber", **SMALL)
    assert first.outcome.cost["teacher_queries"] == other.outcome.cost["teacher_queries"] == 80
    assert first.column("loss") != other.column("loss")


def test_the_student_is_called_at_the_task_s_time(run):
    early = run("diffusion/regression_kd", "ring", overrides={"student": {"start": 1.0}}, **SMALL)
    late = run("diffusion/regression_kd", "ring", **SMALL)
    assert early.outcome.metrics["sw2"] != late.outcome.metrics["sw2"]
