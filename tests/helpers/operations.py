"""Runs that something happens to at one of their file operations, and at another, and so on.

    python -m tests.helpers.operations FOLDER SHARE SHARES [KIND:STEP ...]

A run takes place in a forked process whose audit hook counts what it does to files of the results folder, and strikes
at one of these operations: every ``STEP``-th has its turn, of which this process takes its share. Then the same run
goes on in another process, and what must hold is checked there. Prints a JSON object with, by kind, the number of
operations, at how many of them something happened, and what went wrong.
"""

from __future__ import annotations

import errno
import json
import os
import random
import shutil
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from kdbench.errors import UsageError
from kdbench.registry import discover
from kdbench.schedule import session
from kdbench.store import duck, spool
from tests.helpers.scenes import dump
from tests.toytrack import EXTENSION, write_method

TAKES = {"open", "os.mkdir", "os.rename"}
"""Operations that may need room on the disk."""
CHANGES = {*TAKES, "os.remove", "os.rmdir", "fcntl.flock"}
JOBS = 4
"""One is done before, and one was interrupted: its outcome is replaced."""
UNEXPECTED = 99
"""Exit code for an exception that no caller is told to expect."""


class Stage:
    """A suite of which a part is done, and everything imported that a run imports on its way."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.plugins = [EXTENSION, EXTENSION.with_name("here.py"), write_method(folder, "plain")]
        self.registry = discover(self.plugins)
        self.results = folder / "r"
        self.template = folder / "template"
        import pandas  # noqa: F401

        from kdbench import provenance
        from kdbench.leaderboard import boards, page  # noqa: F401
        from kdbench.schedule import watch  # noqa: F401
        from kdbench.store import ingest  # noqa: F401

        provenance.of_run()
        self.plan()
        assert self.apart(lambda: self.run(seeds=2)) == 0, self.said
        self._interrupt_one()
        self.results.rename(self.template)

    def _interrupt_one(self) -> None:
        outcome = next(one for one in spool.iter_outcomes(self.results) if one.job.seed == 1)
        folder = spool.job_folder(self.results, outcome.id)
        (folder / "artifacts" / "old").touch()
        changes = {"status": "interrupted", "headline": None, "metrics": {}}
        spool.write_outcome(folder, outcome.model_copy(update=changes))

    def reset(self) -> None:
        """The results folder as it is before every run."""
        shutil.rmtree(self.results, ignore_errors=True)
        shutil.copytree(self.template, self.results)

    def plan(self, seeds: int = JOBS) -> session.Session:
        suite = {"name": "s", "scale": "smoke", "tasks": ["toy/bare"], "methods": ["plain"], "executor": "here"}
        return session.plan_run(
            suite, results=self.results, seeds=seeds, plugins=self.plugins, registry=self.registry, tracking=False
        )

    def run(self, seeds: int = JOBS, *, stores: bool = True) -> int:
        """The exit code of the command. Without ``stores`` the spool alone is filled, which is quicker."""
        if not stores:
            session._stores = lambda run, manager: []
        return session.execute(self.plan(seeds), workers=2).exit_code

    def done(self) -> dict[str, spool.Stamp]:
        """What tells whether an outcome was replaced, of every job that is done."""
        statuses = spool.statuses(self.results)
        return {id: stamp for id, stamp in spool.stamps(self.results).items() if statuses[id] == "ok"}

    def apart(self, work: Callable[[], int | None]) -> int:
        """Do ``work`` in a forked process; its exit code, negative for a signal."""
        pid = os.fork()
        if pid == 0:
            code = UNEXPECTED
            said = os.open(self.folder / "said", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            for number in (1, 2):
                os.dup2(said, number)
            try:
                code = work() or 0
            except UsageError as error:
                print(error)
                code = 2
            except KeyboardInterrupt:
                code = 130
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(code)
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

    @property
    def said(self) -> str:
        return (self.folder / "said").read_text()[-3000:]


class Struck:
    """An audit hook that counts changes below a folder and calls ``strike`` at the ``at``-th one and those after it.

    ``strike(number)`` is told how many there were since, from 0, and is called before the operation.
    """

    def __init__(self, folder: Path, at: int, strike: Callable[[int], None], changes: set[str]) -> None:
        self.folder = os.fspath(folder)
        self.changes = changes
        self.at = at
        self.strike = strike
        self.count = 0
        sys.addaudithook(self._audit)

    def _audit(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event not in self.changes or not self._concerns(event, arguments):
            return
        self.count += 1
        if self.count >= self.at:
            self.strike(self.count - self.at)

    def _concerns(self, event: str, arguments: tuple[Any, ...]) -> bool:
        if event == "fcntl.flock":
            return True
        path = arguments[0]
        if event == "open" and not arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            return False
        if not isinstance(path, str | bytes | os.PathLike):
            return False
        name = os.fsdecode(path)
        return name.startswith(self.folder) or not os.path.isabs(name)


def kill(number: int) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def fill(number: int) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def interrupt(number: int) -> None:
    if number == 0:
        signal.raise_signal(signal.SIGINT)


def insist(number: int) -> None:
    if number in (0, 2):
        signal.raise_signal(signal.SIGINT)


STRIKES: dict[str, tuple[Callable[[int], None], set[str], set[int]]] = {
    "kill": (kill, CHANGES, {-signal.SIGKILL}),
    "full": (fill, TAKES, {0, 1, 2}),
    "interrupt": (interrupt, CHANGES, {0, 130}),
    "insist": (insist, CHANGES, {0, 130}),
}
"""What happens, at which operations, and the exit codes that a run may end with then."""


def count(stage: Stage, changes: set[str]) -> int:
    """Changes of a run that nothing happens to."""
    read, write = os.pipe()

    def work() -> int:
        struck = Struck(stage.results, 1 << 30, kill, changes)
        code = stage.run()
        os.write(write, b"%d" % struck.count)
        return code

    stage.reset()
    assert stage.apart(work) == 0, stage.said
    return int(os.read(read, 100))


def check(stage: Stage, before: dict[str, spool.Stamp], *, stores: bool) -> int:
    """Finish the run and raise where something does not hold then; ``stores``: in the stores, too."""
    code = stage.run(stores=stores)
    assert code == 0, f"the same run again ends with {code}"
    results, after = stage.results, stage.done()
    assert len(after) == JOBS
    assert {id: after[id] for id in before} == before, "a finished job was done again"
    assert sorted(path.name for path in (results / "jobs").iterdir()) == sorted(after)
    files = {
        str(path.relative_to(results / "jobs" / id)) for id in after for path in (results / "jobs" / id).rglob("*")
    }
    assert files == {"outcome.json", "log.txt", "curve.jsonl", "artifacts", "artifacts/facts"}, files
    assert list((results / "running").iterdir()) == []
    if not stores:
        return 0
    page = results / "leaderboards" / "s.md"
    assert duck.state_of(page) == duck.state_of(duck.published_path(results)), "the page shows another state"
    stored = dump(results)
    assert [row[:1] for row in stored["jobs"]] == [(id,) for id in sorted(after)]
    duck.rebuild(results)
    assert stored == dump(results), "a store that was made anew differs"
    return 0


def strike_at_each(stage: Stage, kind: str, first: int, step: int) -> dict[str, Any]:
    """Have every ``step``-th operation from ``first`` on struck in its turn."""
    strike, changes, expected = STRIKES[kind]
    chance = random.Random(first)
    total = count(stage, changes)
    turns = list(range(first, total + 1, step))
    problems: list[str] = []
    missed = 0
    for turn, at in enumerate(turns):
        stage.reset()
        twice = kind == "kill" and turn % 4 == 0  # the run that goes on is killed, too, wherever it is then
        for place in [at, chance.randrange(1, total)] if twice else [at]:
            code = stage.apart(lambda place=place: Struck(stage.results, place, strike, changes) and stage.run())
            if kind == "kill" and code == 0:  # a run in which nothing was two seconds old has fewer operations
                missed += place == at
            elif code not in expected:
                problems.append(f"{kind} at {place}: exit code {code}: {stage.said}")
        before = stage.done()
        stores = len(before) == JOBS or turn % 8 == 0
        if stage.apart(lambda before=before, stores=stores: check(stage, before, stores=stores)):
            problems.append(f"after {kind} at {at}: {stage.said}")
    return {"operations": total, "turns": len(turns), "missed": missed, "problems": problems}


def main() -> int:
    stage, share, shares = Stage(Path(sys.argv[1])), int(sys.argv[2]), int(sys.argv[3])
    found = {}
    for kind, step in (word.split(":") for word in sys.argv[4:]):
        found[kind] = strike_at_each(stage, kind, 1 + share * int(step), shares * int(step))
    print(json.dumps(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
