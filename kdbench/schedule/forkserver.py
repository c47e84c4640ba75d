"""The process that jobs are forked from: it has torch imported, so that a job starts in milliseconds.

The same idea as the ``forkserver`` of :mod:`multiprocessing`, which does not fit for four reasons: its children
import the coordinator's ``__main__`` again, it cannot tell what a child used, it does not outlive or end with its
parent in a defined way, and it does not look after what children leave behind. This one also watches the jobs
(time, memory, output), so that nothing that the coordinator waits for can delay that.

It ends, with everything that it started, when the coordinator closes the connection or dies. On Linux it is a child
subreaper: processes that a job leaves behind, even in sessions of their own, come to it and are killed. On other
systems those of the job's own session are.

Messages are JSON over a :class:`multiprocessing.connection.Connection`; see ``LocalExecutor`` for the other side.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import selectors
import signal
import sys
import time
import traceback
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import import_module
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NoReturn

import psutil

from kdbench.schedule import child, machine
from kdbench.schedule.logs import CappedLog

TICK = 0.25
"""Seconds between two looks at time and memory."""
GRACE = 2.0
"""Seconds that a cancelled job has to end by itself."""
DUMP = 0.5
"""Seconds that a job that is out of time has to print where it is."""
FAMILY = 1.0
"""Seconds between two looks at the memory of what jobs started: finding it reads the whole process table."""
CHUNK = 1 << 18
"""Bytes of output that are read of one job at a time."""
LAST_CHUNKS = 64
"""Chunks of output that are read of a job that has ended: something that it left may print for ever."""

PR_SET_CHILD_SUBREAPER = 36


@dataclass
class _Running:
    """One forked job."""

    id: str
    pid: int
    process: psutil.Process
    output: int
    log: CappedLog
    memory: int
    gpu: bool
    started: float
    deadline: float
    oom_kills: int
    kill_at: float | None = None
    reason: str | None = None
    message: str = ""
    family: list[psutil.Process] = field(default_factory=list)
    open: bool = True
    log_failed: bool = False


class ForkServer:
    """State and loop of the process."""

    def __init__(self, control: Connection, progress: int, config: Mapping[str, Any]) -> None:
        self.control = control
        self.progress = progress
        self.config = config
        self.parent = os.getppid()
        self.jobs: dict[int, _Running] = {}
        self.me = psutil.Process()
        self.selector = selectors.DefaultSelector()
        self.wake_read, self.wake_write = os.pipe()
        self.closing = False
        self.orphans_possible = False
        self.next_family = 0.0

    # --- life -------------------------------------------------------------------------------------------------------

    def serve(self) -> None:
        """Work until the coordinator is gone, then end everything."""
        for descriptor in (self.wake_read, self.wake_write):
            os.set_blocking(descriptor, False)
        signal.set_wakeup_fd(self.wake_write, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        if sys.platform == "linux":
            ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1)
        self._preload()
        self.selector.register(self.control, selectors.EVENT_READ)
        self.selector.register(self.wake_read, selectors.EVENT_READ)
        next_look = 0.0
        try:
            while not self.closing and os.getppid() == self.parent:
                for key, _ in self.selector.select(TICK if self.jobs or self.orphans_possible else 4 * TICK):
                    self._ready(key)
                self._reap()
                now = time.monotonic()
                if now >= next_look:
                    self._look(now)
                    next_look = now + TICK
        finally:
            self._end_everything()

    def _preload(self) -> None:
        """Import once what jobs need. What fails here fails again, and is recorded, in the job that needs it."""
        problems = []
        for name in self.config["preload"]:
            try:
                import_module(name)
            except Exception as error:  # noqa: BLE001 - any module of any track
                problems.append(f"{name} cannot be imported: {type(error).__name__}: {error}")
        try:
            from kdbench import worker

            worker.warm(tuple(Path(path) for path in self.config["plugins"]), self.config["tracks"])
        except Exception as error:  # noqa: BLE001 - extensions are anybody's code
            problems.append(f"{type(error).__name__}: {error}")
        gc.collect()
        gc.freeze()  # what is here now is never garbage: collections in the jobs leave its pages shared
        self._send({"event": "ready", "problems": problems})

    def _send(self, message: Mapping[str, Any]) -> None:
        try:
            self.control.send_bytes(json.dumps(message).encode())
        except OSError:
            self.closing = True

    def _ready(self, key: selectors.SelectorKey) -> None:
        if key.fileobj is self.control:
            try:
                order = json.loads(self.control.recv_bytes())
            except (EOFError, OSError):
                self.closing = True
                return
            {"start": self._start, "cancel": self._cancel}[order["do"]](order)
        elif key.fileobj == self.wake_read:
            while self._read(self.wake_read, 4096):
                pass
        else:
            self._pump(key.data)

    # --- jobs -------------------------------------------------------------------------------------------------------

    def _start(self, order: dict[str, Any]) -> None:
        read, write = os.pipe()
        os.set_blocking(read, False)
        log = CappedLog(Path(order["folder"]) / "log.txt")
        now = time.monotonic()
        order |= {"parent": os.getpid(), "provenance": self.config["provenance"], "plugins": self.config["plugins"]}
        sys.stdout.flush()  # what waits there would appear in every job's log
        pid = os.fork()
        if pid == 0:
            self._child(order, log, read, write)
        os.close(write)
        job = _Running(
            id=order["id"],
            pid=pid,
            process=psutil.Process(pid),
            output=read,
            log=log,
            memory=order["memory"],
            gpu=bool(order["gpus"]),
            started=now,
            deadline=now + order["timeout"],
            oom_kills=machine.kernel_oom_kills(),
        )
        self.jobs[pid] = job
        self.selector.register(read, selectors.EVENT_READ, job)
        self._send({"event": "started", "id": job.id, "pid": pid})

    def _child(self, order: Mapping[str, Any], log: CappedLog, read: int, write: int) -> NoReturn:
        """In the forked process."""
        code = 1
        try:
            signal.set_wakeup_fd(-1)
            self.selector.close()
            log.abandon()
            for job in self.jobs.values():
                os.close(job.output)
                job.log.abandon()
            for descriptor in (self.control.fileno(), self.wake_read, self.wake_write, read):
                os.close(descriptor)
            code = child.run(order, write, self.progress)
        except BaseException:  # noqa: BLE001 - it goes to the log, and the exit code tells
            traceback.print_exc()
        finally:
            try:
                sys.stdout.flush()
                sys.stderr.flush()
            finally:
                os._exit(code)  # without the interpreter's tidying up, which takes longer than small jobs

    def _cancel(self, order: Mapping[str, Any]) -> None:
        for job in self.jobs.values():
            if job.id == order["id"] and job.reason is None:
                self._end(job, "cancelled", "", GRACE, signal.SIGTERM)

    def _end(self, job: _Running, reason: str, message: str, grace: float, first: signal.Signals) -> None:
        job.reason, job.message = reason, message
        job.kill_at = time.monotonic() + grace
        if grace:
            _kill_group(job.pid, first)
        else:
            _kill_group(job.pid, signal.SIGKILL)

    def _look(self, now: float) -> None:
        """End jobs that are out of time or memory."""
        if now >= self.next_family:
            self._find_families()
            self.next_family = now + FAMILY
        for job in self.jobs.values():
            if job.kill_at is not None:
                if now >= job.kill_at:
                    _kill_group(job.pid, signal.SIGKILL)
                continue
            if now >= job.deadline:
                seconds = job.deadline - job.started
                self._end(job, "timeout", f"it ran longer than {seconds:g} seconds", DUMP, child.DUMP_SIGNAL)
            elif job.memory and not job.gpu:
                used = _memory_used([job.process, *job.family], job.memory)
                if used > job.memory:
                    message = (
                        f"it took {used / 2**20:.0f} MiB of memory, but the suite allows {job.memory / 2**20:.0f} MiB"
                    )
                    self._end(job, "oom", message, 0, signal.SIGKILL)
        if self.orphans_possible:
            self._kill_orphans()

    def _find_families(self) -> None:
        """What each job has started, with one look at the process table."""
        for job in self.jobs.values():
            job.family.clear()
        try:
            processes = {process.pid: process for process in self.me.children(recursive=True)}
            parents = {pid: process.ppid() for pid, process in processes.items()}
        except psutil.Error:  # one of them has just ended; the next look is soon
            return
        for pid, process in processes.items():
            above = parents[pid]
            while above in parents and above not in self.jobs:
                above = parents[above]
            if above in self.jobs:
                self.jobs[above].family.append(process)

    def _reap(self) -> None:
        """Collect the processes that ended: jobs, and what jobs left behind."""
        while True:
            try:
                pid, status, usage = os.wait3(os.WNOHANG)
            except ChildProcessError:
                self.orphans_possible = False
                return
            if pid == 0:
                return
            job = self.jobs.pop(pid, None)
            if job is not None:
                self._ended(job, os.waitstatus_to_exitcode(status), usage.ru_maxrss)

    def _ended(self, job: _Running, code: int, peak: int) -> None:
        left = _kill_group(job.pid, signal.SIGKILL)
        self.orphans_possible = True
        left += self._kill_orphans()
        for _ in range(LAST_CHUNKS):
            if not self._pump(job):
                break
        if job.open:
            self.selector.unregister(job.output)
        os.close(job.output)
        if not job.log_failed:
            try:
                job.log.close()
            except OSError as error:
                print(f"the log of {job.id} cannot be written: {error}", file=sys.stderr)
        if code == -signal.SIGKILL and job.reason is None and machine.kernel_oom_kills() > job.oom_kills:
            job.reason, job.message = "oom", "the machine ran out of memory and the kernel killed it"
        self._send(
            {
                "event": "ended",
                "id": job.id,
                "seconds": time.monotonic() - job.started,
                "reason": job.reason,
                "message": job.message,
                "code": code if code >= 0 else None,
                "signal": signal.Signals(-code).name if code < 0 else None,
                "peak_rss": peak * (1 if sys.platform == "darwin" else 1024),
                "left_behind": left,
            }
        )

    def _pump(self, job: _Running) -> bool:
        """Move what a job printed into its log; whether there may be more."""
        data = self._read(job.output, CHUNK)
        if data == b"" and job.open:  # everyone who could print has ended
            self.selector.unregister(job.output)
            job.open = False
        if data and not job.log_failed:
            try:
                job.log.write(data)
            except OSError as error:  # the disk is full: the job can go on, its output is lost
                job.log_failed = True
                print(f"the log of {job.id} cannot be written: {error}", file=sys.stderr)
        return bool(data)

    @staticmethod
    def _read(descriptor: int, size: int) -> bytes | None:
        try:
            return os.read(descriptor, size)
        except BlockingIOError:
            return None

    # --- what jobs leave behind -------------------------------------------------------------------------------------

    def _kill_orphans(self) -> int:
        """Kill processes whose job has ended; returns how many.

        A process that came to this one is nobody's child any more. It may belong to any job that ran when it
        started, so it is killed as soon as every running job is younger, and at the latest when none runs.
        """
        killed = 0
        if not self.jobs and not _has_children():
            return 0
        try:
            oldest = min((job.process.create_time() for job in self.jobs.values()), default=float("inf"))
            orphans = [process for process in self.me.children() if process.pid not in self.jobs]
        except psutil.Error:
            return 0
        for orphan in orphans:
            try:
                if orphan.status() == psutil.STATUS_ZOMBIE or orphan.create_time() >= oldest:
                    continue
                for process in (orphan, *orphan.children(recursive=True)):
                    process.kill()
                    killed += 1
            except psutil.Error:
                continue
        return killed

    def _end_everything(self) -> None:
        for job in self.jobs.values():
            _kill_group(job.pid, signal.SIGKILL)
        deadline = time.monotonic() + 5
        while time.monotonic() < deadline:
            for process in self.me.children(recursive=True):
                try:
                    process.kill()
                except psutil.Error:
                    continue
            try:
                while os.wait3(os.WNOHANG)[0]:
                    pass
            except ChildProcessError:
                return
            time.sleep(0.01)


def _kill_group(leader: int, number: signal.Signals) -> int:
    """Signal every process of the group that ``leader`` leads or led; whether there was one."""
    try:
        os.killpg(leader, number)
    except (ProcessLookupError, PermissionError):
        return 0
    return 1


def _has_children() -> bool:
    """Whether this process has any child, running or ended."""
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return False
    return True


def _memory_used(family: list[psutil.Process], limit: int) -> int:
    """Bytes of main memory that a job and what it started use.

    Resident sizes are quick to read but count shared pages in each process; only where their sum passes the limit
    is the proportional size asked for, which counts them once.
    """
    try:
        total = sum(member.memory_info().rss for member in family)
        if total > limit:
            total = sum(int(getattr(member.memory_full_info(), "pss", member.memory_info().rss)) for member in family)
    except psutil.Error:  # one of them has just ended
        return 0
    return int(total)


def main(control: int, progress: int) -> None:
    """Entry point: descriptors of the connection and of the pipe for progress, inherited from the coordinator."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # it ends with the coordinator, after the jobs
    connection = Connection(control)
    config = json.loads(connection.recv_bytes())
    ForkServer(connection, progress, config).serve()
