"""Progress for people: lines in a file, a live display on a terminal, an honest time that is left."""

from __future__ import annotations

import io

from kdbench.job import Place
from kdbench.schedule.console import Console
from tests.helpers.outcomes import make_job, make_outcome
from tests.helpers.runs import make_run


class Terminal(io.StringIO):
    def isatty(self):
        return True


def told(stream, tmp_path, jobs, outcomes):
    console = Console(stream)
    run = make_run(tmp_path, jobs)
    console.kdbench_run_started(run=run)
    for job, outcome in zip(jobs, outcomes, strict=True):
        console.kdbench_job_started(run=run, job=job, place=Place(pid=1))
        console.kdbench_job_progress(run=run, job=job, step=3, total=10, metrics={"loss": 0.25})
        console.kdbench_job_usage(run=run, job=job, usage={"rss_bytes": 3 * 2.0**30})
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
    assert "3.0 GiB" in text
    assert "[2/2] oom" in text
    assert "[1/2] ok" not in text


def test_several_suites_and_what_was_done_before(tmp_path):
    jobs = [make_job(seed=seed) for seed in range(3)]
    stream = io.StringIO()
    console = Console(stream)
    run = make_run(tmp_path, jobs, suites={"a": jobs[:2], "b": jobs}, todo=jobs[1:])
    console.kdbench_run_started(run=run)
    console.kdbench_job_finished(run=run, job=jobs[1], outcome=make_outcome(jobs[1]))
    first, second = stream.getvalue().splitlines()
    assert first == "a + b: 2 of 3 jobs to run, 1 done before, 2 at a time"
    assert second.startswith("[1/2] ok")


def test_a_run_with_nothing_to_do_says_nothing(tmp_path):
    stream = io.StringIO()
    console = Console(stream)
    run = make_run(tmp_path, [make_job()], todo=[])
    console.kdbench_run_started(run=run)
    console.kdbench_run_finished(run=run, outcomes=[])
    assert stream.getvalue() == ""
