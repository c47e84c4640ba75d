"""Looks at running jobs, with a clock of the test's own: what is a sign of life, who is hung, what is used."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace

import psutil
import pytest

from kdbench.schedule import child, gpumemory
from kdbench.schedule.limits import GAP, SAMPLE, Limits
from kdbench.schedule.logs import CappedLog
from kdbench.schedule.running import Running
from tests.helpers.jobs import PATIENCE


@pytest.fixture
def sleeper(tmp_path):
    """A job that does nothing, and begins doing something when it is told to."""
    programs = []

    def start(*does, **fields):
        script = "; ".join(
            ["import sys, time", "print(1, flush=True)", "sys.stdin.readline()", *does, "time.sleep(1000)"]
        )
        command = [sys.executable, "-S", "-c", script]
        program = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        programs.append(program)
        assert program.stdout.readline()
        job = Running(
            id=f"job{len(programs)}",
            pid=program.pid,
            process=psutil.Process(program.pid),
            output=-1,
            log=CappedLog(tmp_path / f"log{len(programs)}"),
            **{"memory": 0, "gpus": (), "started": 0.0, "timeout": 1e6, "heartbeat": 3.0, "oom_kills": 0, **fields},
        )
        return job, program

    yield start
    for program in programs:
        program.kill()
        program.communicate()


def look(limits, jobs, now):
    limits.sample(jobs, now)
    return [(job.id, verdict.reason) for job, verdict in limits.look(jobs, now)]


def quiet(limits, job):
    """Look at ten seconds of a job from its tenth second on, until it is judged."""
    for second in range(10, 20):
        verdicts = look(limits, [job], float(second))
        if verdicts:
            return second, verdicts
    return None


def idle(process):
    """Wait until a process has come to rest."""
    before = None
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        now = process.cpu_times()[:2], process.io_counters()
        if now == before and process.status() == psutil.STATUS_SLEEPING:
            return
        before = now
        time.sleep(0.05)
    raise AssertionError("it does not come to rest")


def test_a_job_without_a_sign_of_life_is_hung(sleeper):
    job, _ = sleeper()
    idle(job.process)
    limits = Limits()
    assert quiet(limits, job) == (13, [("job1", "hung")]), "three seconds after the first look, which sees it start"
    (_, verdict) = limits.look([job], 13.2)[0]
    assert verdict.message == (
        "it gave no sign of life for 3 seconds; the last was processor time, 10 seconds after its start"
    )
    assert (verdict.first, verdict.grace > 0) == (signal.SIGUSR1, True), "it says where it is before it ends"


def test_without_a_heartbeat_nothing_is_hung(sleeper):
    job, _ = sleeper(heartbeat=None)
    assert quiet(Limits(), job) is None


@pytest.mark.parametrize(
    ("does", "signs"),
    [
        ("[0 for _ in iter(int, 1)]", {"processor time"}),
        ("pass", {"something that it read or wrote", "processor time"}),  # the line that it reads; that takes time, too
    ],
)
def test_computing_and_reading_are_signs_of_life(sleeper, does, signs):
    job, program = sleeper(does)
    idle(job.process)
    limits = Limits()
    now = 10.0
    assert look(limits, [job], now) == []
    program.stdin.write(b"\n")
    program.stdin.flush()
    deadline = time.monotonic() + PATIENCE
    while (job.sign_at == 10.0 or job.sign not in signs) and time.monotonic() < deadline:
        now += SAMPLE
        job.sign_at = 10.0
        limits.sample([job], now)
    assert (job.sign in signs, job.sign_at) == (True, now)


def test_what_its_children_do_is_its_own_sign_of_life(sleeper):
    code = "import subprocess; subprocess.Popen(['sh', '-c', 'while true; do :; done'])"
    job, program = sleeper(code)
    idle(job.process)
    limits = Limits()
    look(limits, [job], 10.0)
    program.stdin.write(b"\n")
    program.stdin.flush()
    deadline = time.monotonic() + PATIENCE
    while len(job.family) < 2 and time.monotonic() < deadline:
        limits._next_sample = 0.0
        limits.sample([job], 10.0)
    (busy,) = job.family[1:]
    idle(job.process)
    before = busy.cpu_times().user
    limits._next_sample = 0.0
    limits.sample([job], 11.0)
    while busy.cpu_times().user == before and time.monotonic() < deadline:
        time.sleep(0.01)
    look(limits, [job], 12.0)
    assert job.sign_at == 12.0
    busy.kill()


def test_output_is_a_sign_of_life(sleeper):
    job, _ = sleeper()
    idle(job.process)
    limits = Limits()
    look(limits, [job], 10.0)
    job.lives("output", 11.5)
    assert look(limits, [job], 14.4) == []
    assert look(limits, [job], 14.6) == [("job1", "hung")]


def test_a_job_is_not_hung_because_nobody_looked(sleeper):
    """The machine slept, or the fork server was stopped: the job could not do anything either."""
    job, _ = sleeper()
    idle(job.process)
    limits = Limits()
    look(limits, [job], 10.0)
    look(limits, [job], 11.0)
    assert look(limits, [job], 11.0 + 100 * GAP) == []
    assert look(limits, [job], 11.5 + 100 * GAP) == []
    assert look(limits, [job], 14.0 + 100 * GAP) == [("job1", "hung")]


def test_time_is_over_at_the_time(sleeper):
    job, _ = sleeper(timeout=12.0, heartbeat=None)
    limits = Limits()
    assert limits.look([job], 11.9) == []
    ((_, verdict),) = limits.look([job], 12.0)
    assert (verdict.reason, verdict.message) == ("timeout", "it ran longer than 12 seconds")
    job.kill_at = 12.5
    assert limits.look([job], 13.0) == [], "it is being ended"


@pytest.mark.parametrize("gpus", [(), ("GPU-a",)])
def test_memory_is_watched_with_and_without_a_device(sleeper, gpus):
    job, _ = sleeper(gpus=gpus)
    rss = job.process.memory_info().rss
    limits = Limits(lambda device: {})
    assert limits.look([replace(job, memory=2 * rss)], 1.0) == []
    ((_, verdict),) = limits.look([replace(job, memory=rss // 4)], 1.2)
    assert (verdict.reason, verdict.grace) == ("oom", 0)
    assert "MiB of memory, but it may take" in verdict.message


def test_usage_is_told_once_a_second(sleeper):
    job, _ = sleeper()
    on_device, _ = sleeper(gpus=("GPU-a", "GPU-b"))
    unknown, _ = sleeper(gpus=("GPU-b",))
    sizes = {"GPU-a": {on_device.pid: 5 << 20, job.pid: 1}, "GPU-b": {on_device.pid: 7 << 20, 1: 1 << 30}}
    limits = Limits(sizes.__getitem__)
    usage = limits.sample([job, on_device, unknown], 5.0)
    assert usage[job.id] == {"rss_bytes": pytest.approx(job.process.memory_info().rss, rel=0.5)}
    assert usage[on_device.id]["gpu_bytes"] == 12 << 20
    assert "gpu_bytes" not in usage[unknown.id], "the driver does not show it"
    assert limits.sample([job], 5.0 + SAMPLE / 2) == {}
    assert set(limits.sample([job], 5.0 + SAMPLE)) == {job.id}


def test_a_job_that_has_just_ended_is_not_told_as_one_without_memory(sleeper):
    ended, _ = sleeper()
    other, _ = sleeper()
    ended.process.kill()
    while ended.process.status() != psutil.STATUS_ZOMBIE:
        time.sleep(0.01)
    assert set(Limits().sample([ended, other], 5.0)) == {other.id}


def test_a_driver_that_fails_is_not_asked_again(sleeper):
    asked = []

    def fails(device):
        asked.append(device)
        raise RuntimeError("the driver is gone")

    job, _ = sleeper(gpus=("GPU-a",))
    limits = Limits(fails)
    for second in (1.0, 2.0, 3.0):
        assert set(limits.sample([job], second)[job.id]) == {"rss_bytes"}
    assert asked == ["GPU-a"]
    assert "the driver is gone" in limits.problem


def test_the_driver_is_asked_by_the_name_of_the_device(monkeypatch):
    class Process:
        def __init__(self, pid, size):
            self.pid, self.usedGpuMemory = pid, size

    class Nvml:
        class NVMLError(Exception):
            pass

        def nvmlInit(self):
            pass

        def nvmlDeviceGetHandleByUUID(self, uuid):
            return {"GPU-a": 1}[uuid]

        def nvmlDeviceGetComputeRunningProcesses(self, handle):
            return [Process(10, 100), Process(11, None)]

    monkeypatch.setitem(sys.modules, "pynvml", Nvml())
    gpumemory._library.cache_clear()
    try:
        assert gpumemory.process_memory("GPU-a") == {10: 100}
    finally:
        gpumemory._library.cache_clear()


@pytest.mark.parametrize(("gpus", "limited"), [([], True), (["GPU-a"], False)])
def test_allocations_are_limited_without_a_device_only(gpus, limited):
    """CUDA reserves address ranges of any size, which would count."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        child._limit({"memory": 1 << 30, "gpus": gpus})
        import resource

        soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
        os.write(write, b"limited" if soft != hard else b"free")
        os._exit(0)
    os.close(write)
    os.waitpid(pid, 0)
    assert (os.read(read, 100) == b"limited") is limited
    os.close(read)
