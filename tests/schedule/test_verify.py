"""Finished jobs run again: which are drawn, and what counts as the same number."""

from __future__ import annotations

import math

import pytest

from kdbench.errors import UsageError
from kdbench.schedule.session import execute, plan_run
from kdbench.schedule.verify import Comparison, differences, draw_again, repeatable, spread
from kdbench.spec import Metric, TaskSpec
from kdbench.store import spool
from tests.helpers.outcomes import make_job, make_outcome
from tests.toytrack import EXTENSION, PLAIN, write_method

SPEC = TaskSpec(
    name="vision/toy",
    title="Toy",
    family="classify",
    scale="cpu",
    headline=Metric(name="top1"),
    metrics=(Metric(name="speedup", clock=True), Metric(name="nll", direction="min")),
)


def test_every_method_is_drawn_once_before_any_is_drawn_twice():
    jobs = [make_job(method, seed) for method in ("a", "b", "c") for seed in range(5)]
    for number in range(1, 16):
        drawn = spread(jobs, number, draw=number)
        assert len({job.id for job in drawn}) == number
        counts = [sum(job.method == f"vision/{method}" for job in drawn) for method in "abc"]
        assert max(counts) - min(counts) <= 1
    assert len(spread(jobs, 99, draw=0)) == 15
    assert spread(jobs, 6, draw=3) == spread(jobs, 6, draw=3)
    assert spread(jobs, 6, draw=3) != spread(jobs, 6, draw=4)


def test_what_clocks_and_memory_say_need_not_repeat():
    job = make_job(spec=SPEC.identity())
    one = make_outcome(job, 0.5, metrics={"speedup": 2.0}, extra={"gap": math.nan}, cost={"peak_bytes": 5.0})
    two = make_outcome(job, 0.5, metrics={"speedup": 3.0}, extra={"gap": math.nan}, cost={"train_seconds": 9.0})
    then, now = repeatable(one, SPEC), repeatable(two, SPEC)
    assert then["metrics"].keys() == {"top1", "nll"}
    assert then["meters"].keys() == {"steps", "teacher_queries", "flops", "parameters"}
    assert list(differences(then, now)) == []

    last_digit = make_outcome(
        job, math.nextafter(0.5, 1), metrics={"nll": 0.5}, extra={"other": 1.0}, cost={"steps": 99.0}
    )
    found = {(one.kind, one.name): (one.was, one.now) for one in differences(then, repeatable(last_digit, SPEC))}
    assert found.pop(("metrics of its own", "gap"))[1] is None
    assert found == {
        ("metrics", "top1"): (0.5, math.nextafter(0.5, 1)),
        ("metrics of its own", "other"): (None, 1.0),
        ("meters", "steps"): (100.0, 99.0),
    }


def test_a_comparison_says_what_came_of_a_job_and_what_is_not_what_it_was():
    was, now = make_outcome(make_job()), make_outcome(make_job())
    assert Comparison(was, now, 4, ()).state == "same"
    assert Comparison(was, None, 0, ()).state == "left"
    assert Comparison(was, make_outcome(make_job(), status="interrupted"), 0, ()).state == "left"
    assert Comparison(was, make_outcome(make_job(), status="oom"), 0, ()).state == "failed"
    assert Comparison(was, now, 4, ()).surroundings == {}
    now.provenance |= {"packages": {"torch": "2.1"}, "hardware": {"cpu": "other"}}
    assert Comparison(was, now, 4, ()).surroundings == {"torch": ("2.0", "2.1"), "processor": ("", "other")}


def test_jobs_run_again_apart_and_give_the_numbers_that_are_stored(tmp_path):
    write_method(tmp_path / "m", "plain")
    write_method(tmp_path / "m", "other", PLAIN)
    suite = {"name": "mine", "tasks": ["toy/bare@smoke"], "methods": ["plain", "other"], "seeds": 3}
    stored, plugins = tmp_path / "results", [EXTENSION, tmp_path / "m"]

    def plan(sample, into):
        planned = plan_run(suite, results=stored, plugins=plugins, tracking=False)
        return draw_again(planned, tmp_path / into, sample)

    with pytest.raises(UsageError, match="no finished job of mine"):
        plan(2, "none")
    from kdbench.api import run

    assert run(suite, results=stored, plugins=plugins, tracking=False).exit_code == 0
    before = spool.stamps(stored)

    verification = plan(2, "again")
    assert verification.candidates == 6
    assert {job.method for job in verification.session.run.jobs} == {"toy/plain", "toy/other"}
    compared = verification.compare(execute(verification.session))
    assert [one.state for one in compared] == ["same", "same"]
    assert all(one.numbers >= 3 for one in compared)
    assert spool.stamps(stored) == before, "what is stored stays as it is"

    # a number that was stored wrongly is found
    folder = spool.job_folder(stored, compared[0].was.id)
    outcome = compared[0].was
    name = outcome.job.spec["headline"]["name"]
    outcome.metrics[name] += 1e-9
    spool.write_outcome(folder, outcome)
    verification = plan(2, "once-more")
    states = {one.was.id: one for one in verification.compare(execute(verification.session))}
    assert states[outcome.id].state == "differs"
    assert [found.name for found in states[outcome.id].differences] == [name]
    assert states[compared[1].was.id].state == "same"
