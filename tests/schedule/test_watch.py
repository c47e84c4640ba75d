"""The state of a run as others see it: while it goes on, when it has ended, when it was killed."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from kdbench.errors import UsageError
from kdbench.job import Failure, Place
from kdbench.schedule.packing import Capacity
from kdbench.schedule.watch import Watch
from kdbench.store import runs
from tests.helpers.outcomes import make_job, make_outcome
from tests.helpers.runs import make_run, wait_for
from tests.schedule.fake import Clock, Does, FakeExecutor, fake_loop

TICK = 0.01


def now(run):
    return runs.seen(run.results, run.id)


def test_a_run_tells_what_its_workers_and_suites_do(tmp_path):
    jobs = [make_job(seed=seed) for seed in range(4)]
    run = make_run(tmp_path, jobs, suites={"a": jobs, "b": jobs[2:]}, todo=jobs[1:])
    clock = Clock()
    with Watch(run, interval=TICK, clock=clock) as watch:
        watch.kdbench_run_started(run=run)
        first = now(run)
        assert first.live, "seen at once"
        assert (first.state.pid, first.state.slots) == (os.getpid(), 2)
        assert runs.jobs(tmp_path, run.id).keys() == {job.id for job in jobs[1:]}

        watch.kdbench_job_started(run=run, job=jobs[1], place=Place(pid=7, attempt=2))
        place = Place(pid=8, host="node1", devices=("3",))
        watch.kdbench_job_started(run=run, job=jobs[2], place=place)
        watch.kdbench_job_progress(run=run, job=jobs[2], step=10, total=50, metrics={"loss": float("nan")})
        clock.now += 2
        watch.kdbench_job_progress(run=run, job=jobs[2], step=20, total=50, metrics={"loss": float("nan")})
        watch.kdbench_job_usage(run=run, job=jobs[2], usage={"rss_bytes": 2e9, "gpu_bytes": 1e9})
        wait_for(lambda: [worker.step for worker in now(run).state.workers] == [0, 20])
        wait_for(lambda: now(run).state.workers[1].rss_bytes == 2e9)
        state = now(run).state
        plain, placed = state.workers
        assert (plain.job, plain.pid, plain.host, plain.attempt, plain.devices) == (jobs[1].id, 7, state.host, 2, [])
        assert (placed.host, placed.devices, placed.total, placed.rate) == ("node1", ["3"], 50, 5.0)
        assert (placed.gpu_bytes, placed.seconds, placed.suites) == (1e9, 2.0, ["a", "b"])
        assert {suite.name: suite.running for suite in state.suites} == {"a": 2, "b": 1}

        watch.kdbench_job_stopped(run=run, job=jobs[1])
        wait_for(lambda: [worker.job for worker in now(run).state.workers] == [jobs[2].id])
        assert now(run).state.total.left == 3, "it waits for another attempt"
        watch.kdbench_job_started(run=run, job=jobs[1], place=Place(pid=9, attempt=3))

        watch.kdbench_job_finished(run=run, job=jobs[2], outcome=make_outcome(jobs[2], None, status="oom"))
        wait_for(lambda: now(run).state.total.done == 1)
        state = now(run).state
        assert [worker.job for worker in state.workers] == [jobs[1].id]
        a, b = state.suites
        assert (a.jobs, a.before, a.done, a.failed, a.left) == (4, 1, 1, 1, 2)
        assert (b.jobs, b.before, b.done, b.failed, b.left) == (2, 0, 1, 1, 1)
        assert (state.total.jobs, state.total.left) == (4, 2)
        assert a.eta_seconds is not None
        assert runs.waiting(tmp_path).keys() == {jobs[1].id, jobs[3].id}
        watch.exit_code = 1
    ended = now(run)
    assert (ended.phase, ended.state.exit_code, ended.state.workers) == ("finished", 1, [])
    assert runs.ended(tmp_path, run.id) == {jobs[2].id: "oom"}
    assert runs.live(tmp_path) == []
    assert not runs.lock_path(tmp_path, run.id).exists(), "locks do not pile up"


def test_a_job_between_two_attempts_is_not_shown_as_running(tmp_path):
    """It ran out of memory after 3 seconds, and waits for the other one to end, to have the machine for itself."""
    jobs = [make_job(seed=seed) for seed in range(2)]
    oom = Does(3.0, status="oom", error=Failure(type="oom", message="too much"))
    executor = FakeExecutor(
        Capacity(2.0, (), 1 << 33), Clock(), lambda work: oom if (work.job.seed, work.attempt) == (1, 1) else Does(10.0)
    )
    run, shown = make_run(tmp_path, jobs), []

    def look(*expected):
        wait_for(lambda: [(worker.job, worker.attempt) for worker in now(run).state.workers] == list(expected))
        shown.append(expected)

    executor.at(2.0, lambda: look((jobs[0].id, 1), (jobs[1].id, 1)))
    executor.at(5.0, lambda: look((jobs[0].id, 1)))
    executor.at(12.0, lambda: look((jobs[1].id, 2)))
    with Watch(run, interval=TICK, clock=executor.clock) as watch:
        assert fake_loop(tmp_path, jobs, executor, hooks=[watch]).go().exit_code == 0
    assert len(shown) == 3


@pytest.mark.parametrize(("code", "phase"), [(0, "finished"), (1, "finished"), (130, "interrupted"), (None, "failed")])
def test_how_a_run_ended(tmp_path, code, phase):
    run = make_run(tmp_path, [make_job()])
    with Watch(run) as watch:
        watch.kdbench_run_started(run=run)
        watch.exit_code = code
    assert now(run).phase == phase


def test_a_run_that_ends_with_an_error_says_which(tmp_path):
    run = make_run(tmp_path, [make_job()])
    with pytest.raises(UsageError), Watch(run) as watch:
        watch.kdbench_run_started(run=run)
        raise UsageError("the disk is full", place="here")
    assert (now(run).phase, now(run).state.error) == ("failed", "here: the disk is full")


def test_the_state_is_written_anew_also_when_nothing_happens(tmp_path):
    run = make_run(tmp_path, [make_job()])
    with Watch(run, interval=TICK) as watch:
        watch.kdbench_run_started(run=run)
        first = now(run).state.updated
        wait_for(lambda: now(run).state.updated > first)


def test_a_killed_coordinator_is_seen_as_dead(tmp_path):
    program = f"""
import sys, time
from pathlib import Path
from kdbench.schedule.watch import Watch
from tests.helpers.outcomes import make_job
from tests.helpers.runs import make_run
run = make_run(Path({str(tmp_path)!r}), [make_job()])
with Watch(run) as watch:
    watch.kdbench_run_started(run=run)
    print("started", flush=True)
    time.sleep(600)
"""
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout.readline() == "started\n"
        (run,) = runs.live(tmp_path)
        assert run.state.pid == process.pid
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate()
    assert runs.seen(tmp_path, run.id).phase == "died"
    assert runs.live(tmp_path) == []
    assert runs.waiting(tmp_path) == {}


def test_who_looks_is_not_taken_for_a_run_and_does_not_stop_one(tmp_path):
    run = make_run(tmp_path, [make_job()])
    lock = runs.lock_path(tmp_path, run.id)
    lock.parent.mkdir(parents=True)
    lock.touch()
    looks, stop = [], threading.Event()

    def look():
        while not stop.is_set():
            looks.append(runs.held(lock))
            time.sleep(0.001)

    threads = [threading.Thread(target=look) for _ in range(3)]
    for thread in threads:
        thread.start()
    wait_for(lambda: len(looks) > 100)
    before = list(looks)
    with Watch(run) as watch:
        watch.kdbench_run_started(run=run)
        assert now(run).live
        stop.set()
        for thread in threads:
            thread.join()
    assert not any(before)


def test_a_run_with_nothing_to_do_leaves_nothing(tmp_path):
    run = make_run(tmp_path, [make_job()], todo=[])
    with Watch(run) as watch:
        watch.kdbench_run_started(run=run)
    assert runs.ids(tmp_path) == []
    assert not runs.runs_folder(tmp_path).exists()


def test_a_state_that_cannot_be_written_is_said_once_and_the_run_goes_on(tmp_path, caplog):
    jobs = [make_job(seed=seed) for seed in range(2)]
    run = make_run(tmp_path, jobs)
    with caplog.at_level(logging.WARNING), Watch(run, interval=TICK) as watch:
        watch.kdbench_run_started(run=run)
        hidden = watch.folder.with_name("hidden")
        watch.folder.rename(hidden)
        wait_for(lambda: caplog.records)
        watch.kdbench_job_finished(run=run, job=jobs[0], outcome=make_outcome(jobs[0]))
        hidden.rename(watch.folder)
        wait_for(lambda: runs.ended(tmp_path, run.id) == {jobs[0].id: "ok"})
        assert now(run).state.total.done == 1, "what was missed is made up for"
        watch.folder.rename(hidden)
    assert len(caplog.records) == 1
    assert "kdbench status" in caplog.text
