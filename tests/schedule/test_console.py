"""Progress for people: lines in a file, a live display on a terminal, an honest time that is left."""

from __future__ import annotations

import io

import pytest

from kdbench.job import Run
from kdbench.schedule.console import Console, Tally
from tests.helpers.outcomes import make_job, make_outcome


class Terminal(io.StringIO):
    def isatty(self):
        return True


def told(stream, tmp_path, jobs, outcomes):
    console = Console(stream)
    run = Run(
        id="r",
        suites={"s": [job.id for job in jobs]},
        results=tmp_path,
        jobs=jobs,
        todo=[job.id for job in jobs],
        workers=2,
    )
    console.kdbench_run_started(run=run)
    for job, outcome in zip(jobs, outcomes, strict=True):
        console.kdbench_job_started(run=run, job=job)
        console.kdbench_job_progress(run=run, job=job, step=3, total=10, metrics={"loss": 0.25})
        if console.live is not None:
            console.live.refresh()
        console.kdbench_job_finished(run=run, job=job, outcome=outcome)
    console.kdbench_run_finished(run=run, outcomes=outcomes)
    return stream.getvalue()


def test_a_file_gets_a_line_per_job(tmp_path):
    jobs = [make_job(seed=0), make_job(seed=1)]
    outcomes = [make_outcome(jobs[0], 0.75), make_outcome(jobs[1], None, status="timeout")]
    lines = told(io.StringIO(), tmp_path, jobs, outcomes).splitlines()
    assert len(lines) == 3
    assert "2 of 2 jobs to run" in lines[0]
    assert lines[1].startswith("[1/2] ok")
    assert "top1 0.75" in lines[1]
    assert lines[2].startswith("[2/2] timeout")
    assert f"kdbench logs {jobs[1].id}" in lines[2]
    assert "\x1b" not in "".join(lines)


def test_a_terminal_shows_what_runs_and_keeps_only_failures(tmp_path):
    jobs = [make_job(seed=0), make_job(seed=1)]
    outcomes = [make_outcome(jobs[0], 0.75), make_outcome(jobs[1], None, status="oom")]
    text = told(Terminal(), tmp_path, jobs, outcomes)
    assert "step 3/10" in text
    assert "loss 0.25" in text
    assert "[2/2] oom" in text
    assert "[1/2] ok" not in text


def test_the_time_left_comes_from_jobs_of_the_same_kind(tmp_path):
    slow, fast = [make_job("slow", seed) for seed in range(3)], [make_job("fast", seed) for seed in range(3)]
    tally = Tally([*slow, *fast], workers=2)
    assert tally.eta({}) is None, "nothing is known before the first job has ended"
    done = make_outcome(slow[0])
    tally.add(slow[0], done)
    assert tally.eta({}) == pytest.approx(5 * done.seconds / 2)
    assert tally.eta({("x", "y"): 1e9}) == 0
    assert (tally.n_done, tally.n_failed, tally.n_left) == (1, 0, 5)
    tally.add(fast[0], make_outcome(fast[0], None, status="failed"))
    assert tally.n_failed == 1
