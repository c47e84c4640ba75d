"""Whole runs: what is done again and what is not, teachers first, two runs at once, one import of torch."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading

import pytest

import kdbench
from kdbench.errors import UsageError
from kdbench.hookspecs import hookimpl
from kdbench.leaderboard.page import page_path
from kdbench.registry import discover
from kdbench.schedule import machine
from kdbench.schedule.packing import Capacity
from kdbench.schedule.session import execute, plan_run
from kdbench.store import spool
from tests.schedule.fake import FakeExecutors
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


def test_a_job_that_ran_out_of_memory_is_tried_once_more_alone(tmp_path, monkeypatch):
    """On a machine of 1.2 GiB with two jobs at once, one takes more than its half."""
    body = """
        import numpy
        @hookimpl
        def train(task, params):
            held = numpy.ones((700 if task.seed else 1, 1 << 17))     # MiB
            return task.student()
        """
    monkeypatch.setattr(machine, "memory", lambda: 1200 << 20)
    files = [write_method(tmp_path, "hungry", body)]
    result, counter = run(tmp_path, files, suite("hungry"), workers=2)
    assert result.exit_code == 0, [outcome.error for outcome in result.outcomes]
    plenty, short = sorted(result.outcomes, key=lambda outcome: outcome.job.seed)
    assert (plenty.attempts, short.attempts) == (1, 2)
    assert [earlier["status"] for earlier in short.provenance["retried"]] == ["oom"]
    assert "Unable to allocate" in short.provenance["retried"][0]["message"]
    assert counter.started.count(short.id) == 2
    assert len(counter.finished) == 2, "the hooks are told of one outcome per job"
    assert "attempt 2" in (spool.job_folder(tmp_path / "r", short.id) / "log.txt").read_text()


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


# --- several suites in one run ----------------------------------------------------------------------------------------


def planned(folder, files, *suites, extension=None, **options):
    """A session over suites whose jobs are only played, with the extension that plays them."""
    registry = discover([EXTENSION, *files])
    extension = extension or FakeExecutors()
    registry.manager.register(extension)
    fakes = [{**suite, "executor": "fake"} for suite in suites]
    return plan_run(fakes, results=folder / "r", tracking=False, registry=registry, **options), extension


def test_suites_of_one_run_do_their_common_jobs_once_and_each_has_its_page(tmp_path):
    files = [write_method(tmp_path, slug) for slug in ("plain", "other", "third")]
    one = suite("plain", "other", seeds=3, name="one", keep="model", timeout="5m")
    two = suite("plain", "third", seeds=2, name="two", timeout="10m")
    session, extension = planned(tmp_path, files, one, two)
    run = session.run
    assert [len(ids) for ids in run.suites.values()] == [6, 4]
    assert len(run.jobs) == len(run.todo) == 8, "two are in both"
    shared = [job for job in run.jobs if all(job.id in ids for ids in run.suites.values())]
    assert [(job.keep, job.timeout, job.suite) for job in shared] == [(("model",), 600.0, "one")] * 2
    assert [job.id for job in shared] == [job.model_copy().id for job in shared]

    result = execute(session)
    assert result.exit_code == 0
    assert len(extension.made[0].ran) == 8
    parts = [result.of(name) for name in run.suites]
    assert [(part.run.suite, len(part.run.jobs), len(part.outcomes)) for part in parts] == [
        ("one", 6, 6),
        ("two", 4, 4),
    ]
    pages = [page_path(tmp_path / "r", name).read_text() for name in run.suites]
    assert ["third" in page for page in pages] == [False, True]
    assert all("plain" in page for page in pages)

    again, extension = planned(tmp_path, files, two, one)
    assert again.run.todo == []
    assert execute(again).exit_code == 0
    assert extension.made == []


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"name": "one"}, r"two suites of this run are called 'one'"),
        ({"executor": "local"}, r"share an executor, but one has another"),
        ({"tracking": "sqlite:///elsewhere.db"}, r"tracked alike, but one is not"),
    ],
)
def test_suites_that_do_not_fit_together_are_refused_with_their_places(tmp_path, change, words):
    write_method(tmp_path, "plain")
    for name, more in (("one", {}), ("two", change)):
        data = {"tasks": ["toy/bare@smoke"], "methods": ["plain"], "executor": {"name": "local", "workers": 2}, **more}
        (tmp_path / f"{name}.yaml").write_text(json.dumps(data))
    registry = discover([EXTENSION, tmp_path / "plain.py"])
    with pytest.raises(UsageError, match=words) as caught:
        plan_run([tmp_path / "one.yaml", tmp_path / "two.yaml"], results=tmp_path / "r", registry=registry)
    assert len(caught.value.problems) == 1
    assert caught.value.problems[0].place.startswith(f"{tmp_path / 'two.yaml'}:1:")


def test_problems_of_all_suites_are_told_together_and_a_filter_may_leave_one_out(tmp_path):
    files = [write_method(tmp_path, slug) for slug in ("plain", "other")]
    with pytest.raises(UsageError) as caught:
        planned(tmp_path, files, suite("plainn", name="one"), suite("otherr", name="two"))
    assert [word in str(caught.value) for word in ("plainn", "otherr")] == [True, True]
    session, _ = planned(tmp_path, files, suite("plain", name="one"), suite("other", name="two"), filter="other")
    assert list(session.run.suites) == ["two"]
    with pytest.raises(UsageError, match="no job matches 'none'"):
        planned(tmp_path, files, suite("plain", name="one"), suite("other", name="two"), filter="none")


def test_a_suite_of_an_interrupted_run_that_has_nothing_yet_has_no_page(tmp_path):
    files = [write_method(tmp_path, slug) for slug in ("plain", "other")]
    extension = FakeExecutors(Capacity(1.0, (), 1 << 30))

    class Stop:
        @hookimpl
        def kdbench_job_finished(self, job, outcome):
            signal.raise_signal(signal.SIGINT)

    suites = suite("plain", seeds=4, name="one"), suite("other", seeds=4, name="two")
    session, _ = planned(tmp_path, files, *suites, extension=extension)
    result = execute(session, hooks=[Stop()])
    assert result.exit_code == 130
    assert session.run.signal == signal.SIGINT
    assert [page_path(tmp_path / "r", name).exists() for name in ("one", "two")] == [True, False]
