"""The executor of this machine, without a loop: usage, devices, and the death of the fork server."""

from __future__ import annotations

import os
import shutil
import signal
import sys
import time
from dataclasses import replace

import psutil
import pytest

from kdbench.errors import UsageError
from kdbench.schedule import local as module
from kdbench.schedule import machine
from kdbench.schedule.executor import Progress, Resized, Started, Usage
from kdbench.schedule.local import LocalExecutor
from kdbench.schedule.machine import Gpu
from kdbench.schedule.packing import Slot
from tests.helpers.jobs import PATIENCE, Jobs
from tests.toytrack import PLAIN

WAITS = """
import os, subprocess, time
@hookimpl
def train(task, params):
    child = subprocess.Popen(["sleep", "1000"])
    task.artifact("fact").write_text(str(child.pid))
    task._report(1, 2, {})
    time.sleep(1000)
"""


def gone(pid):
    """Whether a process ends, whoever has to collect it."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        try:
            if psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
                return True
        except psutil.NoSuchProcess:
            return True
        time.sleep(0.02)
    return False


@pytest.fixture
def jobs(tmp_path):
    return Jobs(tmp_path, {"plain": PLAIN, "waits": WAITS}, seeds=6)


@pytest.fixture
def executor(jobs):
    made = LocalExecutor(jobs.context())
    yield made
    made.close()


@pytest.mark.skipif(sys.platform != "linux", reason="orphans are found on Linux")
def test_the_death_of_the_fork_server_loses_jobs_but_not_the_run(jobs, executor):
    id = jobs.submit(executor, "waits")
    started = jobs.until(executor, id, Started)
    usage = jobs.until(executor, id, Usage)
    assert usage.values["rss_bytes"] > 1 << 20
    jobs.until(executor, id, Progress)
    os.kill(psutil.Process(started.pid).ppid(), signal.SIGKILL)
    lost = jobs.wait(executor, id)
    assert lost.ended.reason == "lost"
    assert lost.ended.message == "the process that jobs are forked from died (SIGKILL)"
    assert gone(int(lost.fact())), "and what it had started"
    again = jobs.run(executor, "plain")
    assert again.ended.code == 0, "the next job has another server"

    nowhere = jobs.run(executor, "plain", folder=jobs.folder / "missing")  # there is no place for its log
    assert (nowhere.ended.reason, "log.txt" in nowhere.ended.message) == ("lost", True)
    assert jobs.run(executor, "plain").ended.code == 0


def test_a_server_that_cannot_start_ends_the_run(jobs, monkeypatch):
    monkeypatch.setattr(module.sys, "executable", shutil.which("false"))
    executor = LocalExecutor(jobs.context())
    try:
        with pytest.raises(UsageError, match="died .* while it started"):
            jobs.run(executor, "plain")
    finally:
        executor.close()


def test_devices_are_given_by_their_place_and_shrink_with_what_others_use(jobs, monkeypatch):
    gpus = (Gpu("GPU-a", "a", 8 << 30, used=1 << 30), Gpu("GPU-b", "b", 8 << 30))
    executor = LocalExecutor(jobs.context(), gpus=gpus)
    try:
        assert [device.memory for device in executor.capacity.gpus] == [7 << 30, 8 << 30]
        assert [device.total for device in executor.capacity.gpus] == [8 << 30, 8 << 30]
        asked = []

        def refresh(known, ours):
            asked.append(ours)
            return (replace(known[0], used=2 << 30), replace(known[1], used=1 << 20))

        monkeypatch.setattr(machine, "refresh", refresh)
        executor._next_refresh = 0.0
        executor._refresh({"GPU-a": [7]})
        assert asked == [{"GPU-a": [7]}]
        (event,) = executor.poll(0)
        assert event == Resized(executor.capacity)
        assert [device.memory for device in executor.capacity.gpus] == [6 << 30, (8 << 30) - (1 << 20)]
        executor._next_refresh = 0.0
        executor._refresh({})
        assert executor.poll(0) == [], "nothing changed"
        sent = []
        monkeypatch.setattr(executor, "_start", lambda: object())
        monkeypatch.setattr(executor, "_tell", sent.append)
        for slot in (Slot(1.0, (1,), 0.25), Slot(1.0, (0, 1)), Slot(1.0)):
            jobs.submit(executor, "plain", slot=slot)
        executor._control = None
        assert [(order["gpus"], order["alone"], order["reuse"]) for order in sent] == [
            (["GPU-b"], False, True),
            (["GPU-a", "GPU-b"], True, True),
            ([], False, False),
        ]
    finally:
        executor.close()
