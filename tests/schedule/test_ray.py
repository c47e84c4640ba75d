"""The executor ``ray``: a real cluster of three machines, one of which is killed; and what stops it from starting."""

from __future__ import annotations

import re
import sys
import time
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import yaml

import kdbench
from kdbench import worker
from kdbench.errors import UsageError
from kdbench.hookspecs import hookimpl
from kdbench.registry import discover
from kdbench.resolve import open_suite
from kdbench.schedule.executor import Context, Ended, Started, Work
from kdbench.schedule.packing import Demand, Slot
from kdbench.schedule.ray import OPTIONS
from kdbench.schedule.ray import ray as make
from kdbench.schedule.session import plan_run
from kdbench.store import spool
from tests.toytrack import EXTENSION, write_method

PATIENCE = 120
"""Seconds after which something that must happen has not."""

WAITS = """
import os, time
@hookimpl
def train(task, params):
    student = task.student()
    task.fit(student, lambda model, batch: ((model(batch.x) - batch.y) ** 2).mean())
    print("trained on", os.environ.get("KDBENCH_MACHINE"))
    deadline = time.monotonic() + {patience}
    while not os.path.exists({flag!r}):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return student
"""

TAUGHT = """
@hookimpl
def train(task, params):
    teacher, student = task.teacher(), task.student()
    task.fit(student, lambda model, batch: ((model(batch.x) - teacher(batch.x)) ** 2).mean())
    return student
"""

CHECKPOINTS = """
import os, time
@hookimpl
def train(task, params):
    student = task.student()
    def loss(model, batch):
        if not os.path.exists({flag!r}):
            time.sleep(0.2)
        return ((model(batch.x) - batch.y) ** 2).mean()
    task.fit(student, loss)
    return student
"""

MACHINE = {"include_dashboard": False, "object_store_memory": 80 << 20, "memory": 2 << 30, "num_cpus": 1}
SYSTEM = {"health_check_initial_delay_ms": 1000, "health_check_period_ms": 500, "health_check_failure_threshold": 2}


@pytest.fixture
def cluster(tmp_path, monkeypatch):
    """Three machines with a core each and caches of their own."""
    monkeypatch.setenv("RAY_memory_monitor_refresh_ms", "0")  # whatever else runs beside these tests
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    from ray.cluster_utils import Cluster

    def node(name):
        return {**MACHINE, "env_vars": {"KDBENCH_MACHINE": name, "KDBENCH_CACHE": str(tmp_path / "caches" / name)}}

    made = Cluster(initialize_head=True, head_node_args={**node("head"), "_system_config": SYSTEM})
    try:
        made.second, made.third = (made.add_node(wait=False, **node(name)) for name in ("second", "third"))
        made.wait_for_nodes(PATIENCE)
        yield made
    finally:
        made.shutdown()


def suite(cluster, *methods, **more):
    executor = {"name": "ray", "address": cluster.address}
    return {"name": "s", "scale": "smoke", "tasks": ["toy/line"], "methods": list(methods), "executor": executor} | more


class Killer:
    """Kills the third machine while a job waits there, and lets the jobs that wait end when the run knows of it."""

    def __init__(self, cluster, flag, log):
        self.cluster = cluster
        self.flag = flag
        self.log = log
        self.places = []
        self.finished = []
        self.victim = None
        self.most = 0

    @hookimpl
    def kdbench_job_started(self, job, place):
        try:
            machine = psutil.Process(place.pid).environ()["KDBENCH_MACHINE"]
        except psutil.NoSuchProcess:
            # it had been started on the third machine just before that was killed; or it did not have to wait any more
            machine = None if self.flag.exists() else "third"
        self.places.append((job.id, machine, place.attempt))
        if machine == "third" and job.method == "toy/waits" and self.victim is None:
            self.victim = job.id
            self.cluster.remove_node(self.cluster.third, allow_graceful=False)

    @hookimpl
    def kdbench_job_usage(self, job, usage):
        self.most = max(self.most, usage["rss_bytes"])
        if "a machine of the cluster is gone" in self.log.text:
            self.flag.touch()

    @hookimpl
    def kdbench_job_finished(self, job, outcome):
        self.finished.append(job.id)


def test_a_cluster_runs_the_same_jobs_and_loses_none_with_a_machine(cluster, tmp_path, monkeypatch, caplog, capfd):
    monkeypatch.setenv("KDBENCH_CACHE", str(tmp_path / "caches" / "coordinator"))
    flag = tmp_path / "flag"
    own = tmp_path / "own"
    files = [
        EXTENSION,
        write_method(own, "waits", WAITS.format(flag=str(flag), patience=PATIENCE)),
        write_method(own, "taught", TAUGHT),
        write_method(own, "checkpoints", CHECKPOINTS.format(flag=str(flag))),
    ]
    killer = Killer(cluster, flag, caplog)
    results = tmp_path / "r"
    asked = suite(cluster, "waits", "taught", seeds=4, keep="model")
    ran = kdbench.run(asked, results=results, plugins=files, tracking=False, hooks=[killer])

    assert ran.exit_code == 0, ran.outcomes
    assert sorted(killer.finished) == sorted(job.id for job in ran.run.jobs), "each job has one outcome, none has two"
    assert killer.victim is not None
    assert killer.most > 1 << 20
    assert {machine for _, machine, _ in killer.places if machine} == {"head", "second", "third"}
    assert len(list((results / "running").iterdir())) == 0
    assert "raylet" not in capfd.readouterr().out, "Ray's notices do not mix with what is printed here"
    for outcome in ran.outcomes:
        folder = spool.job_folder(results, outcome.id)
        lost = outcome.id == killer.victim
        assert outcome.attempts == 1 + lost
        assert ("retried" in outcome.provenance) == lost
        assert outcome.provenance["host"]
        assert outcome.job.method_file == own / f"{outcome.job.method.partition('/')[2]}.py"
        assert {"curve.jsonl", "examples.npz", "model/model.safetensors"} <= set(outcome.artifacts)
        assert all((folder / name).is_file() for name in outcome.artifacts)
        if outcome.job.method == "toy/waits":
            place = [machine for id, machine, attempt in killer.places if id == outcome.id][-1]
            assert f"trained on {place or ''}" in (folder / spool.LOG).read_text()

    entries = {path.parts[-4]: path.read_text() for path in (tmp_path / "caches").glob("*/teacher/*/made")}
    assert len(entries) >= 3, "the machine that made the teacher, the coordinator, and others that needed it"
    assert len(set(entries.values())) == 1, "it was made once"

    for outcome in (ran.outcomes[0], ran.outcomes[-1]):
        assert outcome.metrics == run_here(outcome.job, tmp_path, files).metrics, "the same as on this machine"

    flag.unlink()
    check_orders(cluster, tmp_path, files, flag)
    assert not left_over(cluster), "processes of jobs outlive the run"


def check_orders(cluster, tmp_path, files, flag):
    """What the loop asks of the executor, on the two machines that are left."""
    entries = [{"task": "toy/line", "budget": {"steps": 500}}]
    asked = suite(cluster, "waits", "checkpoints", seeds=1, tasks=entries, checkpoint_every=1)
    planned = plan_run(asked, results=tmp_path / "none", plugins=files, tracking=False)
    waits, long = planned.run.jobs
    executor = make(Context(tracks=["toy"], plugins=files), address=cluster.address)

    def work(id, job):
        folder = tmp_path / id
        folder.mkdir()
        return Work(id, "job", job, folder, Slot(1.0, memory=1 << 28), timeout=PATIENCE)

    def submit(work):
        executor.submit(work)
        return work

    def started(id):
        return lambda events: any(isinstance(event, Started) and event.id == id for event in events)

    try:
        assert executor.capacity.cpus == 2
        assert executor.refuses(Demand(1, memory=1 << 40)) is not None

        first = submit(work("long", long))
        until(executor, started("long"))
        submit(work("waits", waits))
        log = tmp_path / "waits" / spool.LOG
        until(executor, lambda events: log.exists() and "trained on" in log.read_text())
        submit(work("queued", waits))
        executor.cancel("queued")
        executor.cancel("nothing that runs")
        assert until(executor, ended("queued")).reason == "cancelled", "it had not started"
        executor.cancel("waits")
        assert until(executor, ended("waits")).reason == "cancelled"
        assert "trained on" in log.read_text()

        # a checkpoint comes back while the job runs, so that it outlives the machine
        until(executor, lambda events: spool.has_checkpoint(first.folder))
        executor.cancel("long")
        assert until(executor, ended("long")).reason == "cancelled"
        assert spool.has_checkpoint(first.folder)
        assert spool.read_outcome(first.folder) is None
        flag.touch()
        again = submit(replace(first, attempt=2))
        assert until(executor, ended("long")).code == 0
        assert "goes on after step" in (again.folder / spool.LOG).read_text()
        resumed, straight = spool.read_outcome(again.folder), run_here(long, tmp_path, files)
        assert resumed.status == straight.status == "ok"
        assert resumed.attempts == 2
        assert resumed.metrics == straight.metrics

        flag.unlink()
        submit(work("left", waits))
        until(executor, started("left"))
    finally:
        executor.close()
        executor.close()


def run_here(job, tmp_path, files):
    return worker.run_job(job, tmp_path / "here" / job.id, plugins=files, provenance={})


def until(executor, happened):
    """Poll until something happened; returns what it was."""
    deadline = time.monotonic() + PATIENCE
    known = executor.__dict__.setdefault("seen by the test", [])
    while True:
        found = happened(known)
        if found:
            return found
        assert time.monotonic() < deadline, known
        known += executor.poll(0.2)


def ended(id):
    """Finds the end of some work, once."""

    def find(events):
        found = next((event for event in events if isinstance(event, Ended) and event.id == id), None)
        if found is not None:
            events.remove(found)
        return found

    return find


def left_over(cluster):
    """Processes of jobs or fork servers that are still there some time after the run."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        found = []
        for process in psutil.process_iter():
            try:
                if "KDBENCH_MACHINE" in process.environ() and "forkserver" in " ".join(process.cmdline()):
                    found.append(process)
            except psutil.Error:
                continue
        if not found:
            return []
        time.sleep(0.2)
    return found


# --- what stops it ----------------------------------------------------------------------------------------------------


def test_a_wrong_address_is_said_at_once(tmp_path, monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    file = write_method(tmp_path, "plain")
    asked = {"name": "s", "scale": "smoke", "tasks": ["toy/bare"], "methods": ["plain"], "seeds": 1}
    begun = time.monotonic()
    with pytest.raises(UsageError, match="no Ray cluster answers at 127.0.0.1:1: .*ray start --head"):
        kdbench.run(
            asked | {"executor": {"name": "ray", "address": "127.0.0.1:1"}},
            results=tmp_path / "r",
            plugins=[EXTENSION, file],
            tracking=False,
        )
    assert time.monotonic() - begun < 60, "Ray itself waits for minutes"


def test_without_ray_it_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UsageError, match=r"needs the package 'ray' \(pip install 'kdbench\[ray\]'\)"):
        make(Context())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"adress": "auto"}, "did you mean 'address'"),
        ({"address": "ray://head:10001"}, "start kdbench there"),
        ({"address": "head"}, "HOST:PORT"),
        ({"address": "head:99999"}, "HOST:PORT"),
        ({"address": 6379}, "HOST:PORT"),
        ({"workers": 0}, "positive whole number"),
        ({"workers": True}, "positive whole number"),
        ({"ship": "no"}, "true or false"),
        ({"runtime_env": ["pip"]}, "is a mapping"),
    ],
)
def test_options_that_mean_nothing_are_refused(options, message):
    with pytest.raises(UsageError, match=message):
        make(Context(), **options)


def test_the_page_about_it_shows_suites_and_options_that_there_are(tmp_path):
    page = Path(__file__).parents[2] / "docs" / "ray.md"
    suite, options = re.findall(r"```yaml\n(.*?)```", page.read_text(), re.DOTALL)
    (tmp_path / "sweep.yaml").write_text(suite)
    opened = open_suite(tmp_path / "sweep.yaml", discover())
    assert opened.executor.name == "ray"
    assert plan_run(tmp_path / "sweep.yaml", results=tmp_path / "r", tracking=False).run.todo
    shown = yaml.safe_load(options)["executor"]
    assert shown.pop("name") == "ray"
    assert sorted(shown) == sorted(OPTIONS)


def test_it_is_known_without_ray(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    assert set(discover().executors()) >= {"local", "ray"}
