"""The executor ``local``: processes of this machine, forked from a server that has torch imported (``forkserver``).

A job on the CPU is a process of its own, so that whatever it does ends with it. Jobs with GPUs share workers, one
after the other on the same devices: CUDA, whose start costs a second or more, starts once per worker. A worker ends
with the first job that does not end well. The option ``reuse`` makes it the same for all jobs.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait
from typing import Any

from kdbench.errors import UsageError
from kdbench.hookspecs import hookimpl
from kdbench.schedule import machine, processes
from kdbench.schedule.executor import Context, Ended, Event, Executor, Progress, Resized, Started, Usage, Work
from kdbench.schedule.packing import Capacity, Demand, Device, never_fits

log = logging.getLogger(__name__)

ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS"), "1")
"""Read by the libraries when they are loaded: results depend on the number of threads."""

REPEATABLE = {"PYTHONHASHSEED": "0", "CUBLAS_WORKSPACE_CONFIG": ":4096:8", "TOKENIZERS_PARALLELISM": "false"}
"""The order of sets of strings, the workspace with which cuBLAS is deterministic, no threads before a fork."""

CLOSING = 10
"""Seconds that the fork server has to end everything before it is killed."""
STARTS = 3
"""Times in a row that a fork server may be killed before it could take work."""
REFRESH = 5.0
"""Seconds between two looks at what others use of the GPUs."""
NOTICED = 64 << 20
"""Bytes of a device's memory from which on a change of what others use counts."""


class LocalExecutor:
    """Runs jobs on this machine, as many at once as the loop finds slots for.

    It may be made in any process, and several times in one; all calls come from one thread.
    """

    def __init__(
        self,
        context: Context,
        *,
        workers: int | None = None,
        reuse: bool | None = None,
        gpus: Sequence[machine.Gpu] | None = None,
    ) -> None:
        """``workers`` is the option of a suite's ``executor:``; the command line's comes with the context and wins.

        ``reuse``: whether jobs share processes; None: those with GPUs do. ``gpus`` are the devices to use, to which
        slots refer by their position; None: those that this process may use, where a job of the run wants any.
        """
        self.context = context
        self.reuse = reuse
        wanted = context.workers or workers or machine.cores()
        found = gpus if gpus is not None else machine.gpus() if context.wants_gpus else ()
        self.gpus = tuple(found)
        self._capacity = Capacity(wanted, _devices(self.gpus), machine.memory())
        self._server: subprocess.Popen[bytes] | None = None
        self._control: Connection | None = None
        self._progress = -1
        self._partial = b""
        self._ready = False
        self._killed_starts = 0
        self._running: dict[str, _Known] = {}
        self._events: list[Event] = []
        self._next_refresh = 0.0
        self._output = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the server that prints into it

    @property
    def capacity(self) -> Capacity:
        return self._capacity

    def refuses(self, demand: Demand) -> str | None:
        return never_fits(demand, self._capacity)

    def submit(self, work: Work) -> None:
        self._running[work.id] = _Known()
        if self._control is None:
            self._start()
        gpus = [self.gpus[number].id for number in work.slot.gpus]
        order = {
            "do": "start",
            "id": work.id,
            "kind": work.kind,
            "job": work.job.model_dump_json(),
            "folder": str(work.folder),
            "gpus": gpus,
            "alone": bool(gpus) and work.slot.share >= 1,
            "reuse": bool(gpus) if self.reuse is None else self.reuse,
            "memory": work.memory_limit,
            "timeout": work.timeout,
            "heartbeat": work.heartbeat,
            "attempt": work.attempt,
        }
        self._tell(order)

    def cancel(self, id: str) -> None:
        if id in self._running:
            self._tell({"do": "cancel", "id": id})

    def poll(self, timeout: float) -> list[Event]:
        if self._control is not None and not self._events:
            ready = wait([self._control, self._progress], timeout)
            if self._progress in ready:
                self._read_progress()
            if self._control in ready:
                self._read_control()
                while self._control is not None and self._control.poll():
                    self._read_control()
        elif not self._events:
            time.sleep(timeout)
        events, self._events = self._events, []
        return events

    def close(self) -> None:
        if self._control is not None:
            self._control.close()  # its end of file is the order to end everything
            self._control = None
        if self._server is not None:
            try:
                self._server.wait(CLOSING)
            except subprocess.TimeoutExpired:
                self._server.kill()
                self._server.wait()
            self._server = None
        if self._progress >= 0:
            os.close(self._progress)
            self._progress = -1
        self._running.clear()
        self._output.close()

    # --- the server -------------------------------------------------------------------------------------------------

    def _start(self) -> None:
        """Start the fork server; it takes orders at once and carries them out when its imports are done."""
        mine, theirs = Pipe()
        read, write = os.pipe()
        for descriptor in (read, write):
            os.set_blocking(descriptor, False)
        # the same import path as here, before anything is imported
        program = (
            f"import sys; sys.path[:] = {sys.path!r}; "
            f"from kdbench.schedule.forkserver import main; main({theirs.fileno()}, {write}, {os.getpid()})"
        )
        self._server = subprocess.Popen(
            [sys.executable, "-c", program],
            stdin=subprocess.DEVNULL,
            stdout=self._output,
            stderr=self._output,
            env={**os.environ, **ONE_THREAD, **REPEATABLE},
            pass_fds=(theirs.fileno(), write),
            start_new_session=True,  # Ctrl-C on the terminal is for the coordinator alone
        )
        theirs.close()
        os.close(write)
        self._progress = read
        config = {
            "preload": list(self.context.preload),
            "tracks": list(self.context.tracks),
            "plugins": [str(path) for path in self.context.plugins],
            "provenance": dict(self.context.provenance),
        }
        self._control = mine
        self._tell(config)

    def _tell(self, message: Mapping[str, Any]) -> None:
        try:
            if self._control is not None:
                self._control.send_bytes(json.dumps(message).encode())
        except OSError:
            self._lost()

    def _read_control(self) -> None:
        assert self._control is not None
        try:
            message = json.loads(self._control.recv_bytes())
        except (EOFError, OSError):
            self._lost()
            return
        kind = message.pop("event")
        if kind == "ready":
            self._ready, self._killed_starts = True, 0
            for problem in message["problems"]:
                log.warning("%s", problem)
        elif kind == "warning":
            log.warning("%s", message["text"])
        elif kind == "usage":
            self._events += [Usage(id, values) for id, values in message["jobs"].items() if id in self._running]
            self._refresh(message["processes"])
        elif kind == "started":
            self._running[message["id"]].pid = message["pid"]
            self._events.append(Started(message["id"], message["pid"], devices=tuple(message["devices"])))
        elif message["id"] in self._running:
            known = self._running.pop(message["id"])
            if message["reason"] in ("timeout", "hung") and known.step is not None:
                message["message"] += f"; it was at step {known.step}"
            self._events.append(Ended(**message))

    def _refresh(self, ours: Mapping[str, Sequence[int]]) -> None:
        """Look at what others use of the GPUs by now. ``ours`` are the processes of this run by device."""
        now = time.monotonic()
        if not self.gpus or now < self._next_refresh:
            return
        self._next_refresh = now + REFRESH
        current = machine.refresh(self.gpus, ours)
        if any(abs(new.used - old.used) >= NOTICED for new, old in zip(current, self.gpus, strict=True)):
            self.gpus = current
            self._capacity = replace(self._capacity, gpus=_devices(current))
            self._events.append(Resized(self._capacity))

    def _read_progress(self) -> None:
        try:
            data = os.read(self._progress, 1 << 20)
        except BlockingIOError:
            return
        *lines, self._partial = (self._partial + data).split(b"\n")
        for line in lines:
            try:
                progress = Progress(**json.loads(line))
            except (ValueError, TypeError):  # a job wrote something else there: nothing depends on it
                log.debug("a message of progress cannot be read: %r", line[:200])
                continue
            if progress.id in self._running:
                self._running[progress.id].step = progress.step
            self._events.append(progress)

    def _lost(self) -> None:
        """The server has died, and its jobs with it. The next work starts another one.

        Raises ``UsageError`` where it ended by itself before it could take work, or was killed then again and again:
        another one would be, too.
        """
        lost, self._running = self._running, {}
        code = self._server.wait() if self._server is not None else None
        for known in lost.values():  # what jobs started does not die with them
            if known.pid is not None:
                processes.kill_group(known.pid)
        name = signal.Signals(-code).name if code is not None and code < 0 else f"exit code {code}"
        message = f"the process that jobs are forked from died ({name})"
        said = self._said()
        if self._control is not None:
            self._control.close()
        os.close(self._progress)
        ready, self._ready = self._ready, False
        self._control, self._server, self._progress, self._partial = None, None, -1, b""
        if not ready:
            self._killed_starts += 1
            if code is None or code >= 0 or self._killed_starts >= STARTS:
                raise UsageError(f"{message} while it started: {said or 'it printed nothing'}")
        log.error("%s%s", message, f": {said}" if said else "")
        self._events += [Ended(id, 0.0, reason="lost", message=message) for id in sorted(lost)]

    def _said(self) -> str:
        self._output.seek(0)
        return self._output.read().decode("utf-8", "replace").strip()[-2000:]


@dataclass
class _Known:
    """What is remembered of work that runs."""

    pid: int | None = None
    step: int | None = None


def _devices(gpus: Sequence[machine.Gpu]) -> tuple[Device, ...]:
    """The devices with the memory that others leave."""
    return tuple(Device(max(0, gpu.memory - gpu.used), gpu.memory) for gpu in gpus)


def local(context: Context, **options: Any) -> Executor:
    """The executor ``local``.

    Options: ``workers``, the jobs at once (default: the cores of this machine); ``reuse``, whether jobs share
    processes (default: those with GPUs do). Raises ``UsageError`` for any other option and for values of other types.
    """
    workers, reuse = options.pop("workers", None), options.pop("reuse", None)
    if options:
        hint = "its options are 'workers' and 'reuse'"
        raise UsageError(f"the executor 'local' has no option {sorted(options)[0]!r}", hint=hint)
    if workers is not None and (not isinstance(workers, int) or isinstance(workers, bool) or workers < 1):
        raise UsageError(f"workers of the executor 'local' is a positive whole number, not {workers!r}")
    if not isinstance(reuse, bool | None):
        raise UsageError(f"reuse of the executor 'local' is true or false, not {reuse!r}")
    return LocalExecutor(context, workers=workers, reuse=reuse)


@hookimpl
def kdbench_executors() -> Mapping[str, Callable[..., Executor]]:
    """The executor that every installation has."""
    return {"local": local}
