"""Whole runs: what is done again and what is not, teachers first, two runs at once, one import of torch."""

from __future__ import annotations

import os
import subprocess
import sys
import threading

import pytest

import kdbench
from kdbench.errors import UsageError
from kdbench.hookspecs import hookimpl
from kdbench.store import spool
from tests.toytrack import EXTENSION, write_method

FLAKY = """
import os
@hookimpl
def train(task, params):
    if not os.path.exists({flag!r}):
        raise RuntimeError("not yet")
    return task.student()
"""


def suite(*methods, tasks=("toy/bare",), seeds=2, **more):
    return {"name": "s", "scale": "smoke", "tasks": list(tasks), "methods": list(methods), "seeds": seeds, **more}


class Counter:
    def __init__(self):
        self.finished = []
        self.started = []

    @hookimpl
    def kdbench_job_started(self, job):
        self.started.append(job.id)

    @hookimpl
    def kdbench_job_finished(self, job, outcome):
        self.finished.append((job.id, outcome.status))


def run(folder, files, data, **options):
    counter = Counter()
    result = kdbench.run(
        data, results=folder / "r", plugins=[EXTENSION, *files], tracking=False, hooks=[counter], **options
    )
    return result, counter


def test_only_what_is_missing_runs_and_failures_wait_to_be_asked_for(tmp_path):
    flag = tmp_path / "flag"
    files = [write_method(tmp_path, "plain"), write_method(tmp_path, "flaky", FLAKY.format(flag=str(flag)))]
    result, counter = run(tmp_path, files, suite("plain", "flaky"))
    assert sorted(status for _, status in counter.finished) == ["failed", "failed", "ok", "ok"]
    assert result.exit_code == 1
    first = {outcome.id: outcome for outcome in result.outcomes}

    again, counter = run(tmp_path, files, suite("plain", "flaky"))
    assert counter.started == []
    assert again.exit_code == 1, "the suite still has failed jobs"

    flag.touch()
    again, counter = run(tmp_path, files, suite("plain", "flaky", seeds=3), retry_failed=True)
    assert len(counter.started) == 4, "two failed ones and a new seed of each"
    assert again.exit_code == 0
    second = {outcome.id: outcome for outcome in again.outcomes}
    for id, outcome in first.items():
        if outcome.status == "ok":
            assert second[id] == outcome
        else:
            assert (second[id].status, second[id].attempts) == ("ok", 2)

    fresh, counter = run(tmp_path, files, suite("plain", seeds=1), fresh=True)
    assert len(counter.started) == 1
    outcome = fresh.outcomes[0]
    assert outcome.metrics == first[outcome.id].metrics, "the same seed gives the same metrics"
    assert outcome.finished_at > first[outcome.id].finished_at


def test_teachers_are_made_once_and_first_and_their_failures_are_their_jobs(tmp_path, monkeypatch):
    monkeypatch.setenv("KDBENCH_CACHE", str(tmp_path / "cache"))
    files = [write_method(tmp_path, "plain")]
    broken = [
        {"task": "toy/line", "override": {"teacher": {"fault": fault}}, "scale": "smoke"} for fault in ("raise", "die")
    ]
    result, counter = run(tmp_path, files, suite("plain", tasks=["toy/line", *broken, "toy/bare"]), workers=2)
    by_fault = {}
    for outcome in result.outcomes:
        teacher = outcome.job.spec["teacher"]
        by_fault.setdefault(teacher and teacher["fault"], []).append(outcome)
    assert [o.status for o in by_fault[""] + by_fault[None]] == ["ok"] * 4
    assert [o.status for o in by_fault["raise"]] == ["failed"] * 2
    assert "the teacher cannot be trained" in by_fault["raise"][0].error.message
    assert [o.status for o in by_fault["die"]] == ["crashed"] * 2
    assert "SIGKILL" in by_fault["die"][0].error.message
    log = spool.job_folder(tmp_path / "r", by_fault["raise"][1].id) / "log.txt"
    assert "ValueError" in log.read_text()
    assert len(list((tmp_path / "cache").glob("teacher/*/entry.json"))) == 1
    order = [id for id, _ in counter.finished]
    assert len(order) == 8


def test_two_runs_of_one_suite_share_the_work(tmp_path):
    """Each job runs once: methods append their job to a file."""
    body = """
        import os, time
        @hookimpl
        def train(task, params):
            time.sleep(0.05)
            with open(os.environ["TRACE"], "a") as file:
                file.write(f"{task.seed}\\n")
            return task.student()
        """
    files = [write_method(tmp_path, "traced", body)]
    os.environ["TRACE"] = str(tmp_path / "trace")
    results = []

    def go():
        results.append(run(tmp_path, files, suite("traced", seeds=12), workers=1))

    try:
        threads = [threading.Thread(target=go) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(120)
    finally:
        del os.environ["TRACE"]
    assert sorted(map(int, (tmp_path / "trace").read_text().split())) == list(range(12))
    for result, counter in results:
        assert result.exit_code == 0
        assert len(result.outcomes) == 12
        assert len(counter.finished) == 12, "each is told of the other's outcomes"
    started = [set(counter.started) for _, counter in results]
    assert not started[0] & started[1]
    assert all(started), "both did some of the work"


def test_torch_is_imported_once_and_the_caller_is_not_imported_again(tmp_path):
    body = """
        import os, torch
        @hookimpl
        def train(task, params):
            with open(task.artifact("facts"), "w") as file:
                threads = [torch.get_num_threads(), os.environ["OMP_NUM_THREADS"], os.environ["CUDA_VISIBLE_DEVICES"]]
                print(os.getppid(), os.getsid(0) == os.getpid(), *map(repr, threads), file=file)
            return task.student()
        """
    write_method(tmp_path, "facts", body)
    script = tmp_path / "script.py"
    script.write_text(f"""
import kdbench
print("imported")
result = kdbench.run({suite("facts", seeds=3)!r}, results={str(tmp_path / "r")!r}, tracking=False,
                     plugins=[{str(EXTENSION)!r}, {str(tmp_path / "facts.py")!r}])
print(result.exit_code)
""")
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=120, check=False)
    assert done.stdout.split() == ["imported", "0"], done.stderr
    facts = {path.read_text() for path in (tmp_path / "r").glob("jobs/*/artifacts/facts")}
    assert len(facts) == 1, "all three were forked from one process"
    assert facts.pop().split()[1:] == ["True", "1", "'1'", "''"]


def test_what_can_never_run_here_is_said_before_anything_runs(tmp_path):
    files = [write_method(tmp_path, "plain")]
    with pytest.raises(UsageError, match="GPU"):
        run(tmp_path, files, suite("plain", resources={"gpus": 64}))
    with pytest.raises(UsageError, match="workers"):
        run(tmp_path, files, suite("plain"), workers=0)
    with pytest.raises(UsageError, match="no option 'turbo'"):
        run(tmp_path, files, suite("plain", executor={"name": "local", "turbo": True}))
    blocked = tmp_path / "r"
    if not blocked.exists():
        blocked.write_text("a file")
    else:
        assert not list(blocked.glob("jobs/*"))
