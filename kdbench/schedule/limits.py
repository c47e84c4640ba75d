"""Looks at running jobs: out of time, out of memory, hung; and what they use.

A job lives while it prints, computes, reads or writes: a message of progress is written, too. Only the time between
two looks counts, so that a machine that slept, or a fork server that was stopped, ends no job.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

import psutil

from kdbench.schedule import processes
from kdbench.schedule.child import DUMP_SIGNAL
from kdbench.schedule.gpumemory import process_memory
from kdbench.schedule.running import Running

SAMPLE = 1.0
"""Seconds between two looks at what jobs have started, use and do."""
GAP = 5.0
"""Seconds without any look from which on this process itself was stopped: nobody can say what jobs did."""
DUMP = 0.5
"""Seconds that a job that is out of time has to print where it is."""


class Verdict(NamedTuple):
    """That a job must end."""

    reason: str
    message: str
    grace: float
    """Seconds between ``first`` and the end; 0: it ends at once."""
    first: signal.Signals


class Limits:
    """State of the looks at all jobs of a fork server."""

    def __init__(self, gpu_memory: Callable[[str], Mapping[int, int]] = process_memory) -> None:
        """``gpu_memory`` says how many bytes of a device (by its id) each process has, as far as that is known."""
        self.gpu_memory = gpu_memory
        self.problem = ""
        """Why the use of GPU memory is not known any more."""
        self._last: float | None = None
        self._next_sample = 0.0

    def look(self, jobs: Iterable[Running], now: float) -> list[tuple[Running, Verdict]]:
        """The jobs that must end now; those that are being ended are left out."""
        jobs = list(jobs)
        gap = now - self._last if self._last is not None else 0.0
        self._last = now
        if gap > GAP:
            for job in jobs:
                job.sign_at = max(job.sign_at, min(now, job.sign_at + gap))
        verdicts = []
        for job in jobs:
            if job.kill_at is None:
                verdict = _out_of_time(job, now) or _hung(job, now) or _out_of_memory(job)
                if verdict is not None:
                    verdicts.append((job, verdict))
        return verdicts

    def sample(self, jobs: Iterable[Running], now: float) -> dict[str, dict[str, float]]:
        """What each job that lives uses now, by id, about once a second; empty between. Takes note of signs of life.

        ``rss_bytes`` is the resident memory of the job and what it started; ``gpu_bytes``, for jobs with GPUs where
        the driver tells, their memory on all its devices.
        """
        if now < self._next_sample:
            return {}
        self._next_sample = now + SAMPLE
        jobs = list(jobs)
        on_gpus = self._gpu_memory({gpu for job in jobs for gpu in job.gpus})
        usage = {}
        for job in jobs:
            job.family = _family(job)
            rss, activity = _measure(job.family)
            if activity != job.activity:
                job.lives(_what(job.activity, activity), now)
                job.activity = activity
            used = {"rss_bytes": rss} if rss else {}  # what has just ended has none, and that is no use of memory
            sizes = [on_gpus[member.pid] for member in job.family if member.pid in on_gpus] if job.gpus else []
            if sizes:
                used["gpu_bytes"] = float(sum(sizes))
            if used:
                usage[job.id] = used
        return usage

    def _gpu_memory(self, devices: Iterable[str]) -> dict[int, int]:
        """Bytes by process on all these devices together."""
        total: dict[int, int] = {}
        if self.problem:
            return total
        try:
            for device in devices:
                for pid, size in self.gpu_memory(device).items():
                    total[pid] = total.get(pid, 0) + size
        except Exception as error:  # noqa: BLE001 - any error of the driver's library; only what is shown depends on it
            self.problem = f"the GPU memory that jobs use is not known any more: {type(error).__name__}: {error}"
            return {}
        return total


def _out_of_time(job: Running, now: float) -> Verdict | None:
    if now < job.started + job.timeout:
        return None
    return Verdict("timeout", f"it ran longer than {job.timeout:g} seconds", DUMP, DUMP_SIGNAL)


def _hung(job: Running, now: float) -> Verdict | None:
    if job.heartbeat is None or now < job.sign_at + job.heartbeat:
        return None
    message = (
        f"it gave no sign of life for {job.heartbeat:g} seconds; "
        f"the last was {job.sign}, {max(0.0, job.sign_at - job.started):.0f} seconds after its start"
    )
    return Verdict("hung", message, DUMP, DUMP_SIGNAL)


def _out_of_memory(job: Running) -> Verdict | None:
    if not job.memory:
        return None
    used = processes.memory_used(job.family, job.memory)
    if used <= job.memory:
        return None
    message = f"it took {used / 2**20:.0f} MiB of memory, but it may take {job.memory / 2**20:.0f} MiB"
    return Verdict("oom", message, 0, signal.SIGKILL)


def _family(job: Running) -> list[psutil.Process]:
    family = [job.process]
    for pid in processes.descendants(job.pid):
        try:
            family.append(psutil.Process(pid))
        except psutil.NoSuchProcess:
            continue
    return family


def _measure(family: Iterable[psutil.Process]) -> tuple[float, tuple[float, ...]]:
    """Resident bytes of these processes, and what grows while they do something."""
    rss = seconds = moved = 0.0
    for member in family:
        try:
            with member.oneshot():
                rss += member.memory_info().rss
                seconds += sum(member.cpu_times()[:4])  # its own and that of its children that ended
                if hasattr(member, "io_counters"):  # macOS does not tell
                    moved += sum(member.io_counters())
        except (psutil.NoSuchProcess, psutil.AccessDenied):  # it has just ended, or is another user's by now
            continue
    return rss, (seconds, moved)


def _what(before: tuple[float, ...], now: tuple[float, ...]) -> str:
    return "processor time" if not before or before[0] != now[0] else "something that it read or wrote"
