"""The executor ``local``: processes of this machine.

Every job is a process of its own, forked from a server that has torch imported (``forkserver``), so that whatever a
job does ends with it. Jobs with GPUs run the same way: the server never initialises CUDA, and each job sees only its
devices. CUDA is therefore initialised once per job, which costs each of them a second or more; workers that stay
alive for several jobs of a device are not built.
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
from collections.abc import Callable, Mapping
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait
from typing import Any

from kdbench.errors import UsageError
from kdbench.hookspecs import hookimpl
from kdbench.schedule import machine
from kdbench.schedule.executor import Context, Ended, Event, Executor, Progress, Started, Work
from kdbench.schedule.packing import Capacity, Demand, Device, never_fits

log = logging.getLogger(__name__)

ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS"), "1")
"""Read by the libraries when they are loaded: results depend on the number of threads."""

REPEATABLE = {"PYTHONHASHSEED": "0", "CUBLAS_WORKSPACE_CONFIG": ":4096:8", "TOKENIZERS_PARALLELISM": "false"}
"""The order of sets of strings, the workspace with which cuBLAS is deterministic, no threads before a fork."""

CLOSING = 10
"""Seconds that the fork server has to end everything before it is killed."""


class LocalExecutor:
    """Forks a process per job, as many at once as the loop finds slots for."""

    def __init__(self, context: Context, *, workers: int | None = None) -> None:
        """``workers`` is the option of a suite's ``executor:``; the command line's comes with the context and wins."""
        self.context = context
        wanted = context.workers or workers or machine.cores()
        self.gpus = machine.gpus() if context.wants_gpus else ()
        devices = tuple(Device(gpu.memory, gpu.memory) for gpu in self.gpus)
        self._capacity = Capacity(wanted, devices, machine.memory())
        self._server: subprocess.Popen[bytes] | None = None
        self._control: Connection | None = None
        self._progress = -1
        self._partial = b""
        self._ready = False
        self._running: set[str] = set()
        self._events: list[Event] = []
        self._output = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the server that prints into it

    @property
    def capacity(self) -> Capacity:
        return self._capacity

    def refuses(self, demand: Demand) -> str | None:
        return never_fits(demand, self._capacity)

    def submit(self, work: Work) -> None:
        if self._control is None:
            self._control = self._start()
        self._running.add(work.id)
        order = {
            "do": "start",
            "id": work.id,
            "kind": work.kind,
            "job": work.job.model_dump_json(),
            "folder": str(work.folder),
            "gpus": [self.gpus[number].id for number in work.slot.gpus],
            "memory": work.memory_limit,
            "timeout": work.timeout,
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

    def _start(self) -> Connection:
        """Start the fork server; it takes orders at once and carries them out when its imports are done."""
        mine, theirs = Pipe()
        read, write = os.pipe()
        for descriptor in (read, write):
            os.set_blocking(descriptor, False)
        # the same import path as here, before anything is imported
        program = (
            f"import sys; sys.path[:] = {sys.path!r}; "
            f"from kdbench.schedule.forkserver import main; main({theirs.fileno()}, {write})"
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
        mine.send_bytes(json.dumps(config).encode())
        return mine

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
            self._ready = True
            for problem in message["problems"]:
                log.warning("%s", problem)
        elif kind == "started":
            self._events.append(Started(**message))
        elif message["id"] in self._running:
            self._running.discard(message["id"])
            self._events.append(Ended(**message))

    def _read_progress(self) -> None:
        try:
            data = os.read(self._progress, 1 << 20)
        except BlockingIOError:
            return
        *lines, self._partial = (self._partial + data).split(b"\n")
        for line in lines:
            try:
                self._events.append(Progress(**json.loads(line)))
            except (ValueError, TypeError):  # a job wrote something else there: nothing depends on it
                log.debug("a message of progress cannot be read: %r", line[:200])

    def _lost(self) -> None:
        """The server has died, and its jobs with it. The next work starts another one.

        Raises ``UsageError`` where it died before it could take work: another one would, too.
        """
        lost, self._running = sorted(self._running), set()
        code = self._server.wait() if self._server is not None else None
        name = signal.Signals(-code).name if code is not None and code < 0 else f"exit code {code}"
        message = f"the process that jobs are forked from died ({name})"
        said = self._said()
        if self._control is not None:
            self._control.close()
        os.close(self._progress)
        ready, self._ready = self._ready, False
        self._control, self._server, self._progress, self._partial = None, None, -1, b""
        if not ready:
            raise UsageError(f"{message} while it started: {said or 'it printed nothing'}")
        log.error("%s%s", message, f": {said}" if said else "")
        self._events += [Ended(id, 0.0, reason="lost", message=message) for id in lost]

    def _said(self) -> str:
        self._output.seek(0)
        return self._output.read().decode("utf-8", "replace").strip()[-2000:]


def local(context: Context, **options: Any) -> Executor:
    """The executor ``local``. Option: ``workers``, the jobs at once (default: the cores of this machine)."""
    workers = options.pop("workers", None)
    if options:
        raise UsageError(f"the executor 'local' has no option {sorted(options)[0]!r}", hint="its option is 'workers'")
    if workers is not None and (not isinstance(workers, int) or isinstance(workers, bool) or workers < 1):
        raise UsageError(f"workers of the executor 'local' is a positive whole number, not {workers!r}")
    return LocalExecutor(context, workers=workers)


@hookimpl
def kdbench_executors() -> Mapping[str, Callable[..., Executor]]:
    """The executor that every installation has."""
    return {"local": local}
