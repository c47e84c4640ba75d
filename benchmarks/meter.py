"""What the coordinator of a run used, written at its end to the file that ``KDBENCH_METER`` names.

Event hooks like any extension's, given with ``--plugin``.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

from kdbench import hookimpl

if TYPE_CHECKING:
    from kdbench.job import Job, Outcome, Run

KIB = 1 if sys.platform == "darwin" else 1024
"""Bytes of the unit in which the system counts resident memory."""

_process = psutil.Process()
_born = time.monotonic() - (time.time() - _process.create_time())
_marks: dict[str, dict[str, float]] = {}
_count = 0


def _mark(name: str) -> None:
    """Note the time, the processor seconds and the largest resident memory of this process so far."""
    processor = _process.cpu_times()
    _marks[name] = {
        "seconds": time.monotonic() - _born,
        "processor": processor.user + processor.system,
        "peak_rss": float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * KIB),
    }


@hookimpl(tryfirst=True)
def kdbench_run_started(run: Run) -> None:
    _mark("planned")


@hookimpl(tryfirst=True)
def kdbench_job_started(run: Run, job: Job) -> None:
    if "first" not in _marks:
        _mark("first")


@hookimpl(trylast=True)
def kdbench_job_finished(run: Run, job: Job, outcome: Outcome) -> None:
    global _count
    _count += outcome.status == "ok"
    _mark("last")


@hookimpl(trylast=True)
def kdbench_run_finished(run: Run, outcomes: Sequence[Outcome]) -> None:
    _mark("finished")
    target = os.environ.get("KDBENCH_METER")
    if target:
        measured: dict[str, Any] = {"ok": _count, "workers": run.workers, "marks": _marks}
        Path(target).write_text(json.dumps(measured))
