"""How far a run is: speeds of jobs, times that are left, suites that share slots and jobs."""

from __future__ import annotations

import pytest

from kdbench.schedule.tally import Running, RunTally, Workers, shared_out
from tests.helpers.outcomes import make_job, make_outcome
from tests.helpers.runs import make_run
from tests.schedule.fake import Clock


def running(job, *, since, step=0, total=None, now=0.0):
    one = Running(job, since)
    if step:
        one.progress(now, step, total, {})
    return one


def test_nothing_is_known_before_the_first_job_has_ended_or_made_a_step(tmp_path):
    jobs = [make_job(seed=seed) for seed in range(4)]
    tally = RunTally(make_run(tmp_path, jobs))
    assert tally.eta([], 0.0) is None
    assert tally.eta([running(jobs[0], since=0.0)], 10.0) is None
    assert tally.etas([], 0.0) == {"s": None}


def test_the_time_left_comes_from_jobs_of_the_same_kind(tmp_path):
    slow, fast = [make_job("slow", seed) for seed in range(3)], [make_job("fast", seed) for seed in range(3)]
    tally = RunTally(make_run(tmp_path, [*slow, *fast]))
    tally.add(slow[0], make_outcome(slow[0], minutes=1))
    assert tally.eta([], 0.0) == pytest.approx(5 * 60 / 2), "jobs of unknown kinds count as the mean of the others"
    tally.add(fast[0], make_outcome(fast[0], None, status="failed", minutes=0.1))
    assert tally.eta([], 0.0) == pytest.approx((2 * 60 + 2 * 6) / 2)
    assert (tally.total.n_done, tally.total.n_failed, tally.total.n_left) == (2, 1, 4)


def test_what_running_jobs_have_done_is_no_longer_left(tmp_path):
    jobs = [make_job(seed=seed) for seed in range(3)]
    tally = RunTally(make_run(tmp_path, jobs))
    tally.add(jobs[0], make_outcome(jobs[0], minutes=1))
    assert tally.eta([running(jobs[1], since=0.0)], 45.0) == pytest.approx((15 + 60) / 2)
    late = running(jobs[1], since=0.0)
    assert tally.eta([late], 1e6) == pytest.approx(30), "a job that takes longer than others is never less than done"


def test_the_last_job_is_waited_for_whatever_the_number_of_slots(tmp_path):
    jobs = [make_job(seed=seed) for seed in range(3)]
    tally = RunTally(make_run(tmp_path, jobs, workers=100))
    tally.add(jobs[0], make_outcome(jobs[0], minutes=1))
    both = [running(jobs[1], since=0.0), running(jobs[2], since=50.0)]
    assert tally.eta(both, 50.0) == pytest.approx(60)


def test_steps_tell_the_time_of_the_first_long_job(tmp_path):
    jobs = [make_job(seed=seed) for seed in range(2)]
    tally = RunTally(make_run(tmp_path, jobs, workers=1))
    first = running(jobs[0], since=0.0, step=25, total=100, now=100.0)
    assert tally.eta([first], 100.0) == pytest.approx(300 + 400)


def test_past_outcomes_tell_the_time_before_anything_has_ended(tmp_path):
    jobs = [make_job("kd", 0), make_job("kd", 1), make_job("new", 0)]
    expected = {jobs[0].id: 30.0, jobs[1].id: 30.0, jobs[2].id: None}
    tally = RunTally(make_run(tmp_path, jobs, workers=1), expected)
    assert tally.eta([], 0.0) == pytest.approx(90)
    tally.add(jobs[0], make_outcome(jobs[0], minutes=2))
    assert tally.eta([], 0.0) == pytest.approx(240), "what this run measured counts more"


def test_a_cancelled_job_is_neither_done_nor_failed(tmp_path):
    job = make_job()
    tally = RunTally(make_run(tmp_path, [job]))
    tally.add(job, make_outcome(job, None, status="interrupted"))
    total = tally.total
    assert (total.n_done, total.n_failed, total.n_cancelled, total.n_left) == (0, 0, 1, 0)
    assert tally.eta([], 0.0) == 0


def test_nothing_left_takes_no_time(tmp_path):
    job = make_job()
    tally = RunTally(make_run(tmp_path, [job]))
    tally.add(job, make_outcome(job))
    assert tally.eta([], 0.0) == 0
    assert tally.etas([], 0.0) == {"s": 0}


def test_suites_count_the_jobs_that_they_share(tmp_path):
    common, own, other = make_job(seed=0), make_job(seed=1), make_job(seed=2)
    run = make_run(tmp_path, [common, own, other], suites={"a": [common, own], "b": [common, other]}, workers=1)
    tally = RunTally(run)
    assert tally.suites_of(common) == ("a", "b")
    tally.add(common, make_outcome(common, minutes=1))
    assert {name: (of.n_done, of.n_left) for name, of in tally.suites.items()} == {"a": (1, 1), "b": (1, 1)}
    assert (tally.total.n_done, tally.total.n_left) == (1, 2)
    assert tally.etas([], 0.0) == {"a": pytest.approx(120), "b": pytest.approx(120)}


def test_no_suite_takes_longer_than_everything(tmp_path):
    jobs = [make_job(seed=seed) for seed in range(4)]
    tally = RunTally(make_run(tmp_path, jobs, suites={"a": jobs, "b": jobs}, workers=1))
    tally.add(jobs[0], make_outcome(jobs[0], minutes=1))
    assert tally.etas([], 0.0) == {"a": pytest.approx(180), "b": pytest.approx(180)}


def test_shared_out():
    assert shared_out({}, 3) == {}
    assert shared_out({"a": 10.0}, 2) == {"a": 5.0}
    done = shared_out({"small": 10.0, "large": 40.0, "none": 0.0}, 2)
    assert done == {"none": 0.0, "small": 10.0, "large": 25.0}
    assert max(done.values()) == 50 / 2, "sharing wastes nothing"


def test_the_speed_is_that_of_the_last_seconds(tmp_path):
    clock, job = Clock(), make_job()
    workers = Workers(clock)
    workers.started(job)
    one = workers.running[job.id]
    clock.now += 30  # start-up is no training
    workers.progress(job, 0, 1000, {})
    assert one.rate is None
    for step in range(10, 110, 10):
        clock.now += 0.5
        workers.progress(job, step, None, {"loss": 1.0})
    assert one.rate == pytest.approx(20)
    assert (one.step, one.total) == (100, 1000), "a total that is known stays known"
    for step in range(101, 131):
        clock.now += 0.5
        workers.progress(job, step, None, {})
    assert one.rate == pytest.approx(2), "what was long ago is forgotten"
    clock.now += 0.5
    workers.progress(job, 5, None, {})
    assert one.rate is None, "another training of the same job"


def test_jobs_that_do_not_run_are_ignored():
    workers = Workers()
    workers.progress(make_job(), 1, 2, {})
    workers.usage(make_job(), {"rss_bytes": 1.0})
    workers.ended(make_job())
    assert workers.running == {}
