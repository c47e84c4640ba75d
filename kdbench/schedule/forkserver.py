"""The process that jobs are forked from: it has torch imported, so that a job starts in milliseconds.

The same idea as the ``forkserver`` of :mod:`multiprocessing`, which does not fit for four reasons: its children
import the coordinator's ``__main__`` again, it cannot tell what a child used, it does not outlive or end with its
parent in a defined way, and it does not look after what children leave behind. This one also watches the jobs
(``limits``: time, memory, signs of life), so that nothing that the coordinator waits for can delay that.

A job is a process of its own, or the next job of a worker (``workers``) that was forked for one like it.

It ends, with everything that it started, when the coordinator closes the connection or dies. On Linux every job
adopts the orphans below it, and this process those of jobs that ended: whatever session they are in, they are killed.
On other systems those of the job's own session are.

Messages are JSON over a :class:`multiprocessing.connection.Connection`; see ``LocalExecutor`` for the other side.
"""

from __future__ import annotations

import json
import os
import selectors
import signal
import sys
import threading
import time
from collections.abc import Mapping
from contextlib import ExitStack
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import psutil

from kdbench.schedule import machine, processes
from kdbench.schedule.forks import fork, preload
from kdbench.schedule.limits import Limits, Verdict
from kdbench.schedule.logs import CappedLog
from kdbench.schedule.running import LAST_CHUNKS, Running
from kdbench.schedule.workers import Idle, Worker
from kdbench.store import spool

TICK = 0.25
"""Seconds between two looks at the jobs."""
GRACE = 30.0
"""Seconds that a cancelled job has to end by itself: it may write a checkpoint. Most end at once."""
ENDING = 5.0
"""Seconds that the end of everything may take."""


class ForkServer:
    """State and loop of the process."""

    def __init__(self, control: Connection, progress: int, config: Mapping[str, Any], parent: int) -> None:
        self.control = control
        self.progress = progress
        self.config = config
        self.parent = parent
        self.jobs: dict[int, Running] = {}
        """By process id."""
        self.idle = Idle()
        self.limits = Limits()
        self.selector = selectors.DefaultSelector()
        self.wake_read, self.wake_write = os.pipe()
        self.closing = False
        self.warned: set[str] = set()

    # --- life -------------------------------------------------------------------------------------------------------

    def serve(self) -> None:
        """Work until the coordinator is gone, then end everything."""
        for descriptor in (self.wake_read, self.wake_write):
            os.set_blocking(descriptor, False)
        signal.set_wakeup_fd(self.wake_write, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        processes.adopt_orphans()
        self._preload_unless_orphaned()
        self.selector.register(self.control, selectors.EVENT_READ)
        self.selector.register(self.wake_read, selectors.EVENT_READ)
        next_look = 0.0
        try:
            while not self.closing and os.getppid() == self.parent:
                for key, _ in self.selector.select(TICK if self.jobs else 4 * TICK):
                    self._ready(key)
                self._reap()
                now = time.monotonic()
                if now >= next_look:
                    self._look(now)
                    next_look = now + TICK
        finally:
            self._end_everything()

    def _preload_unless_orphaned(self) -> None:
        """Preload, which takes seconds; end at once where the coordinator dies meanwhile."""
        loaded = threading.Event()

        def watch() -> None:
            while not loaded.wait(TICK):
                if os.getppid() != self.parent:
                    os._exit(1)  # nothing runs yet

        watcher = threading.Thread(target=watch, daemon=True)
        watcher.start()
        try:
            self._send({"event": "ready", "problems": preload(self.config)})
        finally:
            loaded.set()
            watcher.join()  # a process forks only while it has one thread

    def _send(self, message: Mapping[str, Any]) -> None:
        try:
            self.control.send_bytes(json.dumps(message).encode())
        except OSError:
            self.closing = True

    def _warn(self, text: str) -> None:
        """Have the coordinator say something, once."""
        if text and text not in self.warned:
            self.warned.add(text)
            self._send({"event": "warning", "text": text})

    def _ready(self, key: selectors.SelectorKey) -> None:
        if self.selector.get_map().get(key.fd) is not key:  # let go of, for what came just before
            return
        if key.fileobj is self.control:
            try:
                order = json.loads(self.control.recv_bytes())
            except (EOFError, OSError):
                self.closing = True
                return
            {"start": self._start, "cancel": self._cancel}[order["do"]](order)
        elif key.fileobj == self.wake_read:
            try:
                while os.read(self.wake_read, 4096):
                    pass
            except BlockingIOError:
                pass
        elif isinstance(key.data, Worker):
            self._worker_says(key.data)
        else:
            self._pump(key.data)

    # --- jobs -------------------------------------------------------------------------------------------------------

    def _start(self, order: dict[str, Any]) -> None:
        order |= {"provenance": self.config["provenance"], "plugins": self.config["plugins"]}
        try:
            with ExitStack() as undo:
                log = CappedLog(Path(order["folder"]) / spool.LOG)
                undo.callback(log.abandon)
                job = self._given_to_worker(order, log) or self._forked(order, log)
                undo.pop_all()
        except OSError as error:  # no room for its log, or for another process
            self._send({"event": "ended", "id": order["id"], "seconds": 0.0, "reason": "lost", "message": str(error)})
            return
        self.jobs[job.pid] = job
        self.selector.register(job.output, selectors.EVENT_READ, job)
        self._send({"event": "started", "id": job.id, "pid": job.pid, "devices": job.gpus})

    def _given_to_worker(self, order: dict[str, Any], log: CappedLog) -> Running | None:
        """The job on a worker that was idle, or None where no worker fits. Ends those that are in its way."""
        gpus = tuple(order["gpus"])
        worker = self.idle.take(gpus) if order["reuse"] else None
        for gone in self.idle.retire_for(gpus, alone=order["alone"], forks=order["reuse"] and worker is None):
            self._forget(gone)
        if worker is None:
            return None
        if not worker.order(order):  # it has just ended, and is collected soon
            self.idle.ending.add(worker.pid)
            self._forget(worker)
            return None
        return self._running(order, log, worker.process, worker.output, worker, taken=False)

    def _forked(self, order: dict[str, Any], log: CappedLog) -> Running:
        """The job on a new process, which is a worker where it is to be used again."""
        pid, output, control = fork(order, log, self.progress, self._leave)
        process, worker = psutil.Process(pid), None
        if control is not None:
            worker = Worker(pid, control, output, tuple(order["gpus"]), process)
            self.selector.register(control, selectors.EVENT_READ, worker)
        return self._running(order, log, process, output, worker, taken=True)

    @staticmethod
    def _running(
        order: Mapping[str, Any],
        log: CappedLog,
        process: psutil.Process,
        output: int,
        worker: Worker | None,
        *,
        taken: bool,
    ) -> Running:
        return Running(
            id=order["id"],
            pid=process.pid,
            process=process,
            output=output,
            log=log,
            memory=order["memory"],
            gpus=tuple(order["gpus"]),
            started=time.monotonic(),
            timeout=order["timeout"],
            heartbeat=order["heartbeat"],
            oom_kills=machine.kernel_oom_kills(),
            worker=worker,
            taken=taken,
        )

    def _leave(self) -> None:
        """In a forked process: let go of what belongs to the server and to other jobs."""
        signal.set_wakeup_fd(-1)
        self.selector.close()
        for job in self.jobs.values():
            job.log.abandon()
            os.close(job.output)
            if job.worker is not None:
                job.worker.control.close()
        for worker in self.idle.workers.values():
            worker.close()
        for descriptor in (self.control.fileno(), self.wake_read, self.wake_write):
            os.close(descriptor)

    def _cancel(self, order: Mapping[str, Any]) -> None:
        for job in self.jobs.values():
            if job.id == order["id"] and job.reason is None:
                self._end(job, Verdict("cancelled", "", GRACE, signal.SIGTERM))

    def _end(self, job: Running, verdict: Verdict) -> None:
        job.reason, job.message = verdict.reason, verdict.message
        job.kill_at = time.monotonic() + verdict.grace
        processes.kill_group(job.pid, verdict.first if verdict.grace else signal.SIGKILL)

    def _look(self, now: float) -> None:
        """End jobs that passed a limit, and tell what the others use."""
        usage = self.limits.sample(self.jobs.values(), now)
        if usage:
            self._send({"event": "usage", "jobs": usage, "processes": self._on_gpus()})
        self._warn(self.limits.problem)
        for job, verdict in self.limits.look(self.jobs.values(), now):
            self._end(job, verdict)
        for job in self.jobs.values():
            if job.kill_at is not None and now >= job.kill_at:
                processes.kill_group(job.pid)
        for worker in self.idle.retire_old(now):
            self._forget(worker)
        self._kill_orphans()

    def _on_gpus(self) -> dict[str, list[int]]:
        """Processes of this run by the devices that they may use."""
        found: dict[str, list[int]] = {}
        for gpus, pids in [
            *((job.gpus, [member.pid for member in job.family]) for job in self.jobs.values()),
            *((worker.gpus, [worker.pid]) for worker in self.idle.workers.values()),
        ]:
            for gpu in gpus:
                found.setdefault(gpu, []).extend(pids)
        return found

    # --- the end of a job -------------------------------------------------------------------------------------------

    def _reap(self) -> None:
        """Collect the processes that ended: jobs, workers, and what jobs left behind."""
        while True:
            try:
                pid, status, usage = os.wait3(os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            job = self.jobs.pop(pid, None)
            worker = self.idle.collected(pid) if job is None else job.worker
            if job is not None:
                self._process_ended(job, os.waitstatus_to_exitcode(status), usage.ru_maxrss)
            if worker is not None:
                self._forget(worker)

    def _process_ended(self, job: Running, code: int, peak: int) -> None:
        left = max(self._kill_orphans(), int(processes.kill_group(job.pid)))
        if code == -signal.SIGKILL and job.reason is None and machine.kernel_oom_kills() > job.oom_kills:
            job.reason, job.message = "oom", "the machine ran out of memory and the kernel killed it"
        if not job.taken and job.reason is None:
            job.reason, job.message = "lost", "the worker that was to do it had ended"
        self._finish(job, peak, left, code)
        if job.worker is None:
            os.close(job.output)

    def _worker_says(self, worker: Worker) -> None:
        """A worker has begun with a job, or is done with it and ready for the next."""
        try:
            message = json.loads(worker.control.recv_bytes())
        except (EOFError, OSError):
            self.selector.unregister(worker.control)  # it ends, and is collected soon
            return
        job = self.jobs[worker.pid]
        if message["event"] == "taken":
            job.taken = True
        elif job.reason is not None:  # too late: it is being ended
            processes.kill_group(job.pid)
        else:
            del self.jobs[worker.pid]
            self.idle.add(worker, time.monotonic())
            self._finish(job, message["peak"], message["left_behind"], 0)

    def _finish(self, job: Running, peak: int, left: int, code: int) -> None:
        """Read what the job still printed and say how it ended. ``peak`` is in the unit of ``getrusage``."""
        for _ in range(LAST_CHUNKS):
            if not self._pump(job):
                break
        if job.open:
            self.selector.unregister(job.output)
        self._write(job, None)
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

    def _pump(self, job: Running) -> bool:
        """Move what a job printed into its log; whether there may be more."""
        data = job.read_output()
        if data == b"" and job.open:  # everyone who could print has ended
            self.selector.unregister(job.output)
            job.open = False
        if data:
            job.lives("output", time.monotonic())
            self._write(job, data)
        return bool(data)

    def _write(self, job: Running, data: bytes | None) -> None:
        """Add to the job's log; None: it is complete. Where the disk is full the job goes on, its output is lost."""
        if job.log_failed:
            return
        try:
            if data is None:
                job.log.close()
            else:
                job.log.write(data)
        except OSError as error:
            job.log_failed = True
            self._warn(f"the log of {job.id} cannot be written: {error}")

    def _forget(self, worker: Worker) -> None:
        """Let go of a worker that ends."""
        if worker.control in self.selector.get_map():
            self.selector.unregister(worker.control)
        worker.close()

    def _kill_orphans(self) -> int:
        """Kill processes whose job has ended; returns how many.

        Jobs and workers adopt the orphans below them while they live, so what came to this process is nobody's.
        """
        orphans = [pid for pid in processes.children(os.getpid()) if pid not in self.jobs and pid not in self.idle]
        family = [*orphans, *(pid for orphan in orphans for pid in processes.descendants(orphan))]
        return len(processes.kill_all(family))

    def _end_everything(self) -> None:
        """Kill every process below this one, those included that are started while it does."""
        for pid in [*self.jobs, *self.idle.workers]:
            processes.kill_group(pid)
        deadline = time.monotonic() + ENDING
        while time.monotonic() < deadline:
            processes.kill_all(processes.descendants(os.getpid()))
            try:
                while os.wait3(os.WNOHANG)[0]:
                    pass
            except ChildProcessError:
                return
            time.sleep(0.01)


def main(control: int, progress: int, parent: int) -> None:
    """Entry point: descriptors of the connection and of the pipe for progress, inherited from the coordinator.

    ``parent`` is the coordinator's process id. It may be dead by now, with orders of its in the connection, which
    are nobody's any more.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # it ends with the coordinator, after the jobs
    connection = Connection(control)
    config = json.loads(connection.recv_bytes())
    ForkServer(connection, progress, config, parent).serve()
