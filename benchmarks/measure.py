"""Runs the real commands of kdbench, benchopt and Ray and says what they took.

Every measurement is a command in a process of its own, in a folder of its own. kdbench writes on a pseudo-terminal,
so that its live display is part of what it costs.
"""

from __future__ import annotations

import json
import os
import pty
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

HERE = Path(__file__).parent
PLUGINS = (HERE / "meter.py", HERE / "noop" / "extension.py", HERE / "noop" / "idle.py")
TASKS, SEEDS = 10, 20
"""Of a suite of many jobs; the rest are variants of the method."""


class Failed(Exception):
    """A measured command failed; the message holds the end of what it printed."""


@dataclass(frozen=True)
class Mark:
    """What the coordinator had used at one moment."""

    seconds: float
    """Since the command began."""
    processor: float
    """Processor seconds of the coordinator itself, without the processes that it started."""
    peak_rss: float
    """Largest resident memory so far, in bytes."""


@dataclass(frozen=True)
class Measured:
    """One ``kdbench run`` that ran jobs."""

    jobs: int
    wall: float
    """Seconds of the whole command."""
    first: Mark
    """When the first job started."""
    last: Mark
    """When the last job was finished."""
    finished: Mark
    """When the stores and the results page were written."""

    @property
    def per_job(self) -> float:
        """Seconds per job, from the start of the first to the end of the last; of use with one job at a time."""
        return (self.last.seconds - self.first.seconds) / self.jobs

    @property
    def share(self) -> float:
        """Processor seconds of the coordinator per second while jobs ran."""
        return (self.last.processor - self.first.processor) / (self.last.seconds - self.first.seconds)


@dataclass(frozen=True)
class Workload:
    """A suite and how many jobs it has."""

    path: Path
    jobs: int


def workload(folder: Path, jobs: int, *, executor: str | Mapping[str, Any], seconds: float = 0.0) -> Workload:
    """Write a suite of about ``jobs`` jobs, not more, each of which sleeps for ``seconds``."""
    tasks = min(TASKS, jobs)
    seeds = min(SEEDS, jobs // tasks)
    variants = jobs // (tasks * seeds)
    suite = {
        "name": f"noop-{jobs}",
        "tasks": [f"noop/t{number}" for number in range(tasks)],
        "methods": [{"method": "idle", "params": {"seconds": seconds}, "grid": {"variant": list(range(variants))}}],
        "seeds": seeds,
        "executor": executor,
        "tracking": False,
    }
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"suite-{jobs}.yaml"
    path.write_text(yaml.safe_dump(suite))
    return Workload(path, tasks * seeds * variants)


# --- kdbench ----------------------------------------------------------------------------------------------------------


def run_suite(load: Workload, results: Path, *, workers: int = 1) -> Measured:
    """``kdbench run`` of a suite of which nothing is done. Raises ``Failed`` unless every job ends as ``ok``."""
    meter = load.path.with_suffix(f".{time.monotonic_ns()}.json")
    command = kdbench("run", str(load.path), results, "--workers", str(workers))
    wall = on_terminal(command, {"KDBENCH_METER": str(meter)})
    measured = json.loads(meter.read_text())
    if measured["ok"] != load.jobs:
        raise Failed(f"{measured['ok']} of {load.jobs} jobs are ok: {' '.join(command)}")
    marks = {name: Mark(**values) for name, values in measured["marks"].items()}
    return Measured(load.jobs, wall, marks["first"], marks["last"], marks["finished"])


def kdbench(verb: str, suite: str, results: Path, *more: str) -> list[str]:
    """A command line with the meter and the track ``noop``."""
    plugins = [word for path in PLUGINS for word in ("--plugin", str(path))]
    return [script("kdbench"), verb, suite, "--results", str(results), *plugins, *more]


def script(name: str) -> str:
    """A console script of this environment. Raises ``Failed`` where it is not installed."""
    path = Path(sys.executable).with_name(name)
    if not path.exists():
        raise Failed(f"{name} is not installed here: pip install 'kdbench[bench,ray]'")
    return str(path)


def on_terminal(command: Sequence[str], environment: Mapping[str, str] | None = None) -> float:
    """Run a command on a pseudo-terminal; returns its wall-clock seconds. Raises ``Failed`` where it fails."""
    ours, theirs = pty.openpty()
    said = bytearray()

    def drain() -> None:
        while True:
            try:
                data = os.read(ours, 1 << 16)
            except OSError:  # Linux's way to say that the other side is closed
                return
            if not data:
                return
            said.extend(data)
            del said[:-10_000]

    reader = threading.Thread(target=drain)
    started = time.perf_counter()
    try:
        process = subprocess.Popen(
            command,
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            start_new_session=True,
            env={**os.environ, "TERM": "xterm", **(environment or {})},
        )
        os.close(theirs)
        reader.start()
        code = process.wait()
        elapsed = time.perf_counter() - started
        reader.join()
    finally:
        os.close(ours)
    if code:
        raise Failed(f"exit code {code}: {' '.join(command)}\n{said[-4000:].decode('utf-8', 'replace')}")
    return elapsed


# --- others -----------------------------------------------------------------------------------------------------------


def benchopt(folder: Path, runs: int) -> dict[str, float]:
    """Seconds per run of a solver that does nothing: the first time, and again from its cache.

    One run at a time, in benchopt's own process. Its start, as a benchmark of one run shows it, is taken off.
    """
    times: dict[str, float] = {}
    for name, count in (("one", 1), ("all", runs)):
        benchmark = folder / f"benchopt-{name}"
        shutil.copytree(HERE / "peers" / "benchopt_noop", benchmark)
        repetitions = min(SEEDS, count)
        variants = ",".join(str(number) for number in range(count // repetitions))
        command = [script("benchopt"), "run", str(benchmark), "--local", "--no-plot", "--n-repetitions"]
        command += [str(repetitions), "--solver", f"idle[variant=[{variants}]]"]
        times[name], times[f"{name}_again"] = quietly(command), quietly(command)
    more = repetitions * (count // repetitions) - 1
    return {
        "startup_seconds": times["one"],
        "run_seconds": (times["all"] - times["one"]) / more,
        "again_seconds": (times["all_again"] - times["one_again"]) / more,
    }


def ray(tasks: int, isolated: int) -> dict[str, float]:
    """Seconds per task that returns at once: in a shared process, and in a process of its own with torch."""
    command = [sys.executable, str(HERE / "peers" / "ray_tasks.py"), "--shared", str(tasks), "--isolated"]
    done = subprocess.run([*command, str(isolated)], capture_output=True, text=True, check=False)
    if done.returncode:
        raise Failed(f"exit code {done.returncode}: {' '.join(command)}\n{done.stderr[-4000:]}")
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def quietly(command: Sequence[str]) -> float:
    """Run a command without a terminal; returns its wall-clock seconds. Raises ``Failed`` where it fails."""
    started = time.perf_counter()
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if done.returncode:
        raise Failed(f"exit code {done.returncode}: {' '.join(command)}\n{(done.stdout + done.stderr)[-4000:]}")
    return time.perf_counter() - started
