"""The process of one job, or of one job after the other, from the fork to its end.

It leads a session of its own, prints into a pipe that the fork server reads, computes with one thread, sees only the
devices it was given, ignores Ctrl-C (the coordinator decides what that means) and dies with the fork server.
"""

from __future__ import annotations

import faulthandler
import json
import os
import resource
import signal
import sys
from collections.abc import Mapping
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from kdbench.schedule import processes
from kdbench.schedule.attempts import occupying

LONGEST_PROGRESS = 4096
"""Bytes of one message of progress: Linux's ``PIPE_BUF``, up to which writes of several processes do not mix."""

DUMP_SIGNAL = signal.SIGUSR1
"""Makes a job print where it is, before it is ended for its time."""


def run(order: Mapping[str, Any], output: int, progress: int) -> int:
    """Do what ``order`` says (see :meth:`kdbench.schedule.local.LocalExecutor.submit`) and return the exit code.

    ``output`` is the pipe for what is printed, ``progress`` the one for messages; every other descriptor of the fork
    server is closed already.
    """
    _enter(order, output)
    _limit(order)
    _do(order, progress)
    return 0


def serve(order: Mapping[str, Any], output: int, progress: int, control: Connection) -> int:
    """As :func:`run`, then what comes over ``control``, until a job is not ``ok`` or does not leave the process clean.

    What a job did to the process is undone before the end of the job is told (:class:`~kdbench.schedule.clean.Clean`).
    """
    # imported here, after the fork, because only workers need it
    from kdbench.schedule.clean import Clean

    _enter(order, output)
    before = Clean()
    while True:
        _limit(order)
        if not _do(order, progress):
            return 0
        left_behind, problems = before.restore(Path(json.loads(order["job"])["method_file"]).parent)
        _watch_faults()
        if problems:
            print(f"[kdbench] the next job gets another process: {'; '.join(problems)}", file=sys.stderr)
            return 0
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        control.send_bytes(json.dumps({"event": "done", "peak": peak, "left_behind": left_behind}).encode())
        try:
            order = json.loads(control.recv_bytes())
        except EOFError:
            return 0
        control.send_bytes(json.dumps({"event": "taken"}).encode())
        before.begin()


def _enter(order: Mapping[str, Any], output: int) -> None:
    """Make a job's process of a copy of the fork server."""
    _detach(order["parent"])
    _redirect(output)
    os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(order["gpus"])


def _do(order: Mapping[str, Any], progress: int) -> bool:
    """Run the job or make its teacher; whether the outcome is ``ok``. Raises what stops a teacher."""
    # imported before the fork; here only so that listing executors does not import torch
    import torch

    from kdbench import worker
    from kdbench.job import Job

    # deterministic algorithms fill memory before it is written, some percent of a small network's step, to show who
    # reads it before: the conformance test, which runs jobs in its own process, still does
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]

    job = Job.model_validate_json(order["job"])
    folder = Path(order["folder"])
    plugins = [Path(path) for path in order["plugins"]]
    device = "cuda" if order["gpus"] else "cpu"
    with occupying(folder):
        if order["kind"] == "prepare":
            worker.prepare(job, folder, device=device, plugins=plugins)
            return True
        outcome = worker.run_job(
            job,
            folder,
            device=device,
            plugins=plugins,
            report=Reporter(order["id"], progress),
            provenance=order["provenance"],
            attempt=order["attempt"],
        )
    if outcome.error is not None:
        print(outcome.error.traceback or f"{outcome.error.type}: {outcome.error.message}", file=sys.stderr)
    return outcome.status == "ok"


def _detach(parent: int) -> None:
    os.setsid()
    for number in (signal.SIGTERM, signal.SIGCHLD, DUMP_SIGNAL):
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    processes.die_with(parent)
    processes.adopt_orphans()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    try:
        with open("/proc/self/oom_score_adj", "w") as score:
            score.write("500")  # short of memory, the kernel ends a job rather than the coordinator
    except FileNotFoundError:  # not Linux
        pass


def _redirect(output: int) -> None:
    """Send what is printed, from Python and from C, into the pipe; there is nothing to read."""
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.close(nothing)
    os.close(output)
    # the inherited objects belong to another kind of file; a line appears as soon as it is printed
    sys.stdout = open(1, "w", buffering=1, encoding="utf-8", errors="backslashreplace", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", buffering=1, encoding="utf-8", errors="backslashreplace", closefd=False)  # noqa: SIM115
    _watch_faults()


def _watch_faults() -> None:
    """Have Python print where it is when it crashes and when it is asked; again after a job that took the signals."""
    faulthandler.disable()
    faulthandler.unregister(DUMP_SIGNAL)
    faulthandler.enable(all_threads=True)
    faulthandler.register(DUMP_SIGNAL, all_threads=True)


def _limit(order: Mapping[str, Any]) -> None:
    """Let the job allocate so many bytes beyond what it starts with; allocations past that fail.

    The soft limit alone: after such a failure the worker lifts it to write the outcome. Memory that this does not
    count (shared mappings, child processes) is watched by the fork server. Jobs with GPUs are watched only: the
    address ranges that CUDA reserves would count.
    """
    if not order["memory"] or order["gpus"]:
        return
    hard = resource.getrlimit(resource.RLIMIT_DATA)[1]
    limit = order["memory"] + _data_bytes()
    if hard == resource.RLIM_INFINITY or limit < hard:
        resource.setrlimit(resource.RLIMIT_DATA, (limit, hard))


def _data_bytes() -> int:
    """Private writable memory that this process has mapped, as ``RLIMIT_DATA`` counts it; 0 where it is unknown."""
    try:
        words = Path("/proc/self/statm").read_text().split()
    except OSError:
        return 0
    return int(words[5]) * resource.getpagesize()


class Reporter:
    """Sends progress to the coordinator, without ever waiting for it."""

    def __init__(self, id: str, pipe: int) -> None:
        self.id = id
        self.pipe = pipe

    def __call__(self, step: int, total: int | None, metrics: dict[str, float]) -> None:
        for count in (16, 4, 0):
            shown = dict(list(metrics.items())[:count])
            text = json.dumps({"id": self.id, "step": step, "total": total, "metrics": shown}) + "\n"
            data = text.encode()
            if len(data) <= LONGEST_PROGRESS:
                break
        try:
            os.write(self.pipe, data)
        except BlockingIOError:
            pass  # the coordinator is behind: a later message says more
        except OSError:
            self.pipe = -1  # it is gone, and this process soon with it
