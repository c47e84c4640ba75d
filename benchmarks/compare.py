"""What scripts share that measure kdbench beside others: turns, medians and spreads, packages of others, the result.

Processes that wait for their turn are measured one after the other, round after round, so that whatever else the
machine does meets all of them alike.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import venv
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import psutil
import typer
from measure import HERE, Failed
from rich.console import Console
from rich.table import Table
from scheduler import machine

PACKAGES = {
    "trl": "trl==1.16.0",
    "liger": "liger-kernel==0.8.5",
    "torchdistill": "torchdistill==1.1.5",
    "benchopt": "benchopt==1.10.0",
}
"""What kdbench is compared with and does not depend on."""

Rounds = Annotated[int, typer.Option(min=1, help="Measurements of each, in turn.")]
Check = Annotated[bool, typer.Option("--check", help="Exit with 1 where a goal is missed.")]
Json = Annotated[
    Path | None, typer.Option("--json", metavar="FILE", help="Also write what was measured here, as JSON.")
]
Continue = Annotated[bool, typer.Option("--continue", help="Add to the rounds that the file of --json holds.")]
Peers = Annotated[bool, typer.Option("--peers/--no-peers", help="Also measure what others offer.")]
PeerFolder = Annotated[
    Path | None, typer.Option(help="Where packages of others are kept for another time; else they are temporary.")
]


class Spread(NamedTuple):
    """Several measurements of the same."""

    median: float
    least: float
    most: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        return cls(statistics.median(values), min(values), max(values))

    def show(self, factor: float = 1.0) -> str:
        """Median and, in brackets, the least and the most, to three digits; all multiplied by ``factor``."""
        middle, least, most = (f"{factor * value:.3g}" for value in self)
        return f"{middle} ({least}-{most})"


class Spent(NamedTuple):
    """What a command took."""

    wall: float
    """Seconds."""
    cpu: float
    """Seconds of processor time, of its children and in the system too."""
    peak: float
    """Largest resident size of one of its processes, bytes."""


def spent(command: Sequence[str], environment: Mapping[str, str] | None = None) -> Spent:
    """Run a command; raises ``Failed`` where it fails."""
    with tempfile.TemporaryFile("w+") as said:
        started = time.perf_counter()
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=said, stderr=said, env={**os.environ, **(environment or {})}
        )
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        wall = time.perf_counter() - started
        if process.returncode:
            said.seek(0)
            raise Failed(f"exit code {process.returncode}: {' '.join(command)}\n{said.read()[-4000:]}")
    return Spent(wall, used.ru_utime + used.ru_stime, 1024.0 * used.ru_maxrss)


class Worker:
    """A process that does what lines on its standard input say, and answers each with a line of JSON."""

    def __init__(
        self,
        script: Path,
        config: Mapping[str, Any],
        *,
        path: Sequence[Path] = (),
        threads: int = 1,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        """``path``: folders with packages that it may import beside those that are installed."""
        counts = {name: str(threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
        home = os.pathsep.join([str(HERE.parent), *map(str, path)])
        self.name = f"{script.name} {json.dumps(config)}"
        self.said = tempfile.TemporaryFile("w+")  # noqa: SIM115 - closed with the process
        self.process = subprocess.Popen(
            [sys.executable, str(script), json.dumps(config)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.said,
            text=True,
            env={**os.environ, **counts, "PYTHONPATH": home, **(environment or {})},
        )

    def ask(self, line: str) -> dict[str, Any]:
        """Do what the line says; raises ``Failed`` where the process ends."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        try:
            self.process.stdin.write(line + "\n")
            self.process.stdin.flush()
            answer = self.process.stdout.readline()
        except BrokenPipeError:
            answer = ""
        if not answer:
            self.process.wait()
            self.said.seek(0)
            raise Failed(f"exit code {self.process.returncode}: {self.name}\n{self.said.read()[-3000:]}")
        found: dict[str, Any] = json.loads(answer)
        return found

    def close(self) -> None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()
        self.said.close()


# --- packages of others -----------------------------------------------------------------------------------------------


@contextmanager
def packages(wanted: Sequence[str], folder: Path | None) -> Iterator[dict[str, Path]]:
    """Folders that hold packages without what they depend on, which is here already; for ``PYTHONPATH``.

    They are installed where they are not there, and temporary unless ``folder`` is given.
    """
    with ExitStack() as stack:
        home = folder or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="kdbench-peers-")))
        found = {}
        for name in wanted:
            found[name] = home / PACKAGES[name].replace("==", "-")
            if not found[name].exists():
                _install([sys.executable, "-m", "pip"], PACKAGES[name], "--no-deps", "--target", str(found[name]))
        yield found


@contextmanager
def environment(name: str, folder: Path | None) -> Iterator[Path]:
    """The ``bin`` folder of an environment that has a package with all it depends on: this one where it does.

    Else one of its own, which takes from this one what is here already and leaves this one as it is.
    """
    if _installed(PACKAGES[name]):
        yield Path(sys.executable).parent
        return
    with ExitStack() as stack:
        home = folder or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="kdbench-peers-")))
        made = home / f"{PACKAGES[name].replace('==', '-')}-environment"
        if not made.exists():
            _make(made, PACKAGES[name])
        yield made / "bin"


def _make(made: Path, requirement: str) -> None:
    try:
        venv.create(made, symlinks=True)
        (site,) = made.glob("lib/python*/site-packages")
        here = [path for path in sys.path if path.endswith("site-packages")]
        (site / "parent.pth").write_text("".join(f"{path}\n" for path in here))
        frozen = made / "constraints.txt"
        frozen.write_text(f"torch=={version('torch').partition('+')[0]}\n")
        _install([str(made / "bin" / "python"), "-m", "pip"], requirement, "-c", str(frozen))
    except BaseException:
        shutil.rmtree(made, ignore_errors=True)  # half an environment must not be taken for one
        raise


def _install(pip: Sequence[str], requirement: str, *options: str) -> None:
    command = [*pip, "install", "-q", "--disable-pip-version-check", *options, requirement]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise Failed(f"{requirement} cannot be installed:\n{done.stderr[-2000:]}")


def _installed(requirement: str) -> bool:
    name, _, wanted = requirement.partition("==")
    try:
        return version(name) == wanted
    except PackageNotFoundError:
        return False


# --- results ----------------------------------------------------------------------------------------------------------


class Surroundings:
    """The machine, and what other programs computed there between the start and :meth:`end`."""

    def __init__(self) -> None:
        self.machine = machine()
        self._before = self._busy(), self._ours(), time.perf_counter()

    def busy(self) -> float:
        """Cores that other programs kept busy; to be asked when all processes of the measurement have ended."""
        busy, ours, now = self._busy(), self._ours(), time.perf_counter()
        return max(0.0, (busy - self._before[0]) - (ours - self._before[1])) / (now - self._before[2])

    def end(self) -> str:
        """One line for people, with :meth:`busy`."""
        return f"{self.machine}; other programs kept {self.busy():.1f} of {os.cpu_count()} cores busy meanwhile"

    @staticmethod
    def _busy() -> float:
        times = psutil.cpu_times()
        return sum(times) - times.idle - getattr(times, "iowait", 0.0) - getattr(times, "guest", 0.0)

    @staticmethod
    def _ours() -> float:
        used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
        return sum(one.ru_utime + one.ru_stime for one in used)


def earlier(path: Path | None, settings: Mapping[str, Any], more: bool) -> list[dict[str, Any]]:
    """Rounds that an earlier call left in ``path``, where ``more`` says that they count.

    Raises ``Failed`` where there are none, or where they were measured with other ``settings``.
    """
    if not more:
        return []
    if path is None or not path.exists():
        raise Failed("--continue needs a file of --json that an earlier call wrote")
    known = json.loads(path.read_text())
    if known["settings"] != settings:
        raise Failed(f"{path} was measured with {known['settings']}, which differs from {dict(settings)}")
    rounds: list[dict[str, Any]] = known["rounds"]
    return rounds


def finish(
    shown: Table,
    found: Mapping[str, Any],
    unmet: Sequence[str],
    *,
    lines: Sequence[str],
    path: Path | None,
    check: bool,
) -> None:
    """Print the table below ``lines`` and what is not met, write ``found`` as JSON, end with 1 where ``check`` says."""
    console = Console(width=None if sys.stdout.isatty() else 200)
    for line in lines:
        console.print(line, highlight=False)
    console.print(shown, highlight=False)
    for reason in unmet:
        console.print(f"not met: {reason}", style="red", highlight=False)
    if path is not None:
        path.write_text(json.dumps({**found, "unmet": list(unmet)}, indent=1) + "\n")
    if check and unmet:
        raise typer.Exit(1)
