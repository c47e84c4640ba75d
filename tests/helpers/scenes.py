"""Suites of toy jobs that run through the real command, to be killed or starved, and what must hold afterwards."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import textwrap
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import yaml

from kdbench.errors import Problem
from kdbench.store import duck, known, membership, schema, spool
from tests.toytrack import EXTENSION, write_method

ROOT = Path(__file__).resolve().parents[2]
KDBENCH = [sys.executable, "-c", "from kdbench.cli import main; main()"]
HERE = EXTENSION.with_name("here.py")
"""Contributes the executor ``here``, for suites of whose jobs nothing is asked but that they are done."""
MARK = "KDBENCH_TEST_SCENE"
"""Variable by which every process that a scene started, however indirectly, is found."""
PATIENCE = 180.0
"""Seconds that anything may take on a busy machine."""

TRACED = """
import contextlib, fcntl, os, subprocess, time

def note(what, task):
    with open(os.environ["TRACE"], "ab", buffering=0) as file:       # one write: lines of processes do not mix
        file.write(f"{what} {os.path.basename(task.folder)} {os.getpid()}\\n".encode())

@contextlib.contextmanager
def traced(task):
    '''Notes that the job begins and ends, and whether another process is at the same job.'''
    with open(f"{os.environ['TRACE']}-{os.path.basename(task.folder)}", "w") as alone:
        try:
            fcntl.flock(alone, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            note("twice", task)
        note("begin", task)
        yield
        note("end", task)

def trained(task):
    student = task.student()
    task.fit(student, lambda model, batch: ((model(batch.x) - batch.y) ** 2).mean())
    return student
"""

BODIES = {
    "quick": """
        @hookimpl
        def train(task, params):
            with traced(task):
                return trained(task)
        """,
    "slow": """
        @hookimpl
        def train(task, params):
            with traced(task):
                time.sleep(0.2)
                return trained(task)
        """,
    "fails": """
        @hookimpl
        def train(task, params):
            with traced(task):
                raise RuntimeError("planted")
        """,
    "parents": """
        @hookimpl
        def train(task, params):
            with traced(task):
                subprocess.Popen(["sleep", "600"], start_new_session=True)
                return trained(task)
        """,
    "waits": """
        @hookimpl
        def train(task, params):
            with traced(task):
                while not os.path.exists(os.environ["TRACE"] + "-go"):
                    time.sleep(0.01)
                return trained(task)
        """,
}
"""Methods of scenes by name; ``waits`` trains when :meth:`Scene.let_go` was called."""


@dataclass
class Scene:
    """A suite in a folder of its own, with a cache, a results folder and a trace of what ran."""

    folder: Path
    methods: Sequence[str]
    tasks: Sequence[str] = ("toy/bare@smoke",)
    seeds: int = 2
    bodies: Mapping[str, str] = field(default_factory=dict)
    """Further methods, beside :data:`BODIES`."""
    suite: Mapping[str, Any] = field(default_factory=dict)
    """Further keys of the suite's file."""
    results: Path = Path()

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        if self.results == Path():
            self.results = self.folder / "results"
        self.mark = uuid.uuid4().hex
        self.trace = self.folder / "trace"
        bodies = {**BODIES, **self.bodies}
        self.files = [
            write_method(self.folder / "m", slug, TRACED + textwrap.dedent(bodies[slug])) for slug in self.methods
        ]
        self.path = self.folder / "scene.yaml"
        content = {"tasks": list(self.tasks), "methods": list(self.methods), "seeds": self.seeds, "tracking": False}
        self.path.write_text(yaml.safe_dump({**content, **self.suite}))

    # --- running ------------------------------------------------------------------------------------------------------

    @property
    def environment(self) -> dict[str, str]:
        """Of the processes of the scene."""
        own = {"KDBENCH_CACHE": str(self.folder / "cache"), "TRACE": str(self.trace), MARK: self.mark}
        return {**os.environ, **own, "PYTHONPATH": str(ROOT)}

    def command(self, *more: str) -> list[str]:
        plugins = [word for path in (EXTENSION, HERE, *self.files) for word in ("--plugin", str(path))]
        return [*KDBENCH, "run", str(self.path), "--results", str(self.results), "--workers", "2", *plugins, *more]

    def start(self, *more: str, name: str = "said", prefix: Sequence[str] = (), **options: Any) -> Said:
        """Start the command; what it prints goes to the file ``name`` in the scene's folder."""
        path = self.folder / name
        with path.open("wb") as file:
            settings: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": file, "stderr": file}
            settings |= {"cwd": self.folder, "env": self.environment, "preexec_fn": _listen, **options}
            process = subprocess.Popen([*prefix, *self.command(*more)], **settings)
        return Said(process, path)

    def run(self, *more: str, **options: Any) -> Said:
        """Run the command to its end."""
        said = self.start(*more, **options)
        said.end()
        return said

    def let_go(self) -> None:
        """Let the method ``waits`` train."""
        Path(f"{self.trace}-go").touch()

    # --- looking ------------------------------------------------------------------------------------------------------

    def stamps(self) -> dict[str, spool.Stamp]:
        """What tells whether an outcome was replaced, of every finished job by id."""
        return spool.stamps(self.results)

    def traced(self, what: str) -> list[str]:
        """Ids of the jobs that noted ``begin``, ``end`` or ``twice``, in order."""
        try:
            lines = self.trace.read_text().splitlines()
        except FileNotFoundError:
            return []
        return [id for word, id, _ in map(str.split, lines) if word == what]

    def process_of(self, id: str) -> psutil.Process:
        """The process that began a job last."""
        lines = [line.split() for line in self.trace.read_text().splitlines()]
        return psutil.Process(int([pid for word, job, pid in lines if (word, job) == ("begin", id)][-1]))

    def processes(self) -> list[psutil.Process]:
        """Every process that the scene started and that still runs."""
        found = []
        for process in psutil.process_iter():
            try:
                if process.environ().get(MARK) == self.mark and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
            except psutil.Error:
                continue
        return found

    # --- what must hold -----------------------------------------------------------------------------------------------

    def require_quiet(self) -> None:
        """Nothing that the scene started runs any more."""
        deadline = time.monotonic() + PATIENCE
        while left := self.processes():
            assert time.monotonic() < deadline, f"processes are left: {left}"
            time.sleep(0.05)

    def require_finished(self, jobs: int, *, stores: bool = True) -> None:
        """Each of the suite's jobs has one outcome, nothing is left over, and the ``stores`` agree with the spool."""
        planned = {id for suite in membership.every(self.results) for id in suite.jobs}
        folders = {path.name for path in spool.jobs_folder(self.results).iterdir()}
        assert len(planned) == jobs
        assert folders == planned, "a folder per job of the plan, and no other"
        problems: list[Problem] = []
        outcomes = {outcome.id: outcome for outcome in spool.iter_outcomes(self.results, problems)}
        assert problems == []
        assert set(outcomes) == planned
        for outcome in outcomes.values():
            expected = "failed" if outcome.job.method == "toy/fails" else "ok"
            assert outcome.status == expected, outcome.error
        assert [path.name for path in (self.results / "running").iterdir()] == []
        assert list((self.results / "jobs").rglob(".*")) == [], "nothing is left of outcomes that were being written"
        assert self.traced("twice") == [], "a job runs in one process at a time"
        if stores:
            require_stores_agree(self.results)
        self.require_quiet()


def require_stores_agree(results: Path) -> None:
    """The store that was filled bit by bit, the one made anew and the spool hold the same."""
    incremental = dump(results)
    duck.rebuild(results)
    for table, rows in dump(results).items():
        assert incremental[table] == rows, f"the table {table} that was made anew differs"
    spooled = {
        (outcome.id, outcome.status, outcome.headline, outcome.finished_at) for outcome in spool.iter_outcomes(results)
    }
    with duck.connect(results) as con:
        stored = con.execute("SELECT id, status, score, finished_at FROM store.jobs").fetchall()
    assert len(stored) == len(spooled)
    assert set(stored) == spooled


def _until(run: Said | Terminal, condition: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        code = run.process.poll()
        if code is not None and not condition():
            raise AssertionError(f"it ended with {code} before this was so: {what}\n{run.text[-4000:]}")
        if time.monotonic() > deadline:
            raise AssertionError(f"it never was so: {what}\n{run.text[-4000:]}")
        time.sleep(0.01)


@dataclass
class Said:
    """A command that runs or ran, and what it printed."""

    process: subprocess.Popen[bytes]
    path: Path

    @property
    def text(self) -> str:
        return self.path.read_text(errors="replace")

    @property
    def code(self) -> int | None:
        return self.process.poll()

    def end(self) -> int:
        """Wait for its end and return its exit code."""
        try:
            return self.process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"it did not end:\n{self.text[-4000:]}") from None

    def until(self, condition: Callable[[], object], what: str) -> None:
        """Wait until something holds. Fails where the command ends before that."""
        _until(self, condition, what)

    def waits_for(self, pattern: str) -> re.Match[str] | None:
        """Wait until it has printed something; None where it ends without that."""
        deadline = time.monotonic() + PATIENCE
        while True:
            ended = self.code is not None  # before what it printed is read
            found = re.search(pattern, self.text)
            if found is not None or ended:
                return found
            assert time.monotonic() < deadline, f"it does not print {pattern}:\n{self.text[-4000:]}"
            time.sleep(0.01)

    def json(self) -> dict[str, Any]:
        """The object that it printed last."""
        text = self.text
        found: dict[str, Any] = json.loads(text[text.index("\n{") if not text.startswith("{") else 0 :])
        return found


def dump(results: Path) -> dict[str, list[tuple[Any, ...]]]:
    """Every row of a published store by table, sorted: all that comes from the spool.

    Cards and claims come from what is installed where the store was brought up to date.
    """
    tables = [name for name in schema.TABLES if name not in ("cards", "claims")]
    with duck.connect(results) as con:
        rows = {name: con.execute(f"SELECT * FROM store.{name} ORDER BY ALL").fetchall() for name in tables}
    return rows | {"meta": [row for row in rows["meta"] if row[0] != known.KEY]}


def kept(before: Mapping[str, spool.Stamp], after: Mapping[str, spool.Stamp]) -> Iterable[str]:
    """Ids of ``before`` whose outcome is gone or another one."""
    return [id for id, stamp in before.items() if after.get(id) != stamp]


def _listen() -> None:
    """Let signals count in a new process: tests that run in the background or under ``nohup`` have them ignored."""
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


class Terminal:
    """A terminal whose foreground is one command of a scene; what it shows is collected in :attr:`text`."""

    _TAKE = (
        "import fcntl, os, sys, termios; os.setsid(); fcntl.ioctl(0, termios.TIOCSCTTY, 0); "
        "os.execv(sys.argv[1], sys.argv[1:])"
    )

    def __init__(self, scene: Scene, *more: str) -> None:
        self.keyboard, inside = os.openpty()
        self.process = subprocess.Popen(
            [sys.executable, "-c", self._TAKE, *scene.command(*more)],
            stdin=inside,
            stdout=inside,
            stderr=inside,
            cwd=scene.folder,
            env={**scene.environment, "TERM": "xterm", "COLUMNS": "120"},
            preexec_fn=_listen,
        )
        os.close(inside)
        self._shown = bytearray()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        while True:
            try:
                data = os.read(self.keyboard, 1 << 16)
            except OSError:  # nobody has the terminal any more
                return
            self._shown += data

    @property
    def text(self) -> str:
        return self._shown.decode("utf-8", "replace").replace("\r\n", "\n")

    def until(self, condition: Callable[[], object], what: str) -> None:
        """Wait until something holds. Fails where the command ends before that."""
        _until(self, condition, what)

    def press_ctrl_c(self) -> None:
        os.write(self.keyboard, b"\x03")

    def close_window(self) -> None:
        """Hang up: everything in the foreground gets SIGHUP."""
        os.close(self.keyboard)

    def end(self) -> int:
        """Wait for the end of the command and of what it shows; return the exit code."""
        code = self.process.wait(PATIENCE)
        self._reader.join(PATIENCE)
        return code
