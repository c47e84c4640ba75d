"""The process of one job, from the fork to its end.

It leads a session of its own, prints into a pipe that the fork server reads, computes with one thread, sees only the
devices it was given, ignores Ctrl-C (the coordinator decides what that means) and dies with the fork server.
"""

from __future__ import annotations

import ctypes
import faulthandler
import json
import os
import resource
import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

PR_SET_PDEATHSIG = 1
"""``prctl(2)``: the signal that this process gets when the thread that forked it ends."""

LONGEST_PROGRESS = 4096
"""Bytes of one message of progress: Linux's ``PIPE_BUF``, up to which writes of several processes do not mix."""

DUMP_SIGNAL = signal.SIGUSR1
"""Makes a job print where it is, before it is ended for its time."""


def run(order: Mapping[str, Any], output: int, progress: int) -> int:
    """Do what ``order`` says (see :meth:`kdbench.schedule.local.LocalExecutor.submit`) and return the exit code.

    ``output`` is the pipe for what is printed, ``progress`` the one for messages; every other descriptor of the fork
    server is closed already.
    """
    _detach(order["parent"])
    _redirect(output)
    _limit(order["memory"])
    os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(order["gpus"])
    # imported before the fork; here only so that listing executors does not import torch
    from kdbench import worker
    from kdbench.job import Job

    job = Job.model_validate_json(order["job"])
    folder = Path(order["folder"])
    plugins = [Path(path) for path in order["plugins"]]
    device = "cuda" if order["gpus"] else "cpu"
    if order["kind"] == "prepare":
        worker.prepare(job, folder, device=device, plugins=plugins)
        return 0
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
    return 0


def _detach(parent: int) -> None:
    os.setsid()
    for number in (signal.SIGTERM, signal.SIGCHLD, DUMP_SIGNAL):
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died before the line above
        os._exit(1)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    score = Path("/proc/self/oom_score_adj")
    if score.exists():
        score.write_text("500")  # short of memory, the kernel ends a job rather than the coordinator


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
    faulthandler.enable(all_threads=True)
    faulthandler.register(DUMP_SIGNAL, all_threads=True)


def _limit(memory: int) -> None:
    """Let the job allocate ``memory`` bytes beyond what it starts with; allocations past that fail.

    The soft limit alone: after such a failure the worker lifts it to write the outcome. Memory that this does not
    count (shared mappings, child processes) is watched by the fork server.
    """
    if not memory:
        return
    hard = resource.getrlimit(resource.RLIMIT_DATA)[1]
    limit = memory + _data_bytes()
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
