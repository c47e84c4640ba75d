"""``kdbench status``, ``logs`` and ``cancel``: what runs do now, from another terminal."""

from __future__ import annotations

import json
import shlex
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kdbench.cli.common import DEFAULT_RESULTS, Id, Json, Results, drawn, print_json, table
from kdbench.errors import UsageError, did_you_mean, plain

if TYPE_CHECKING:
    from rich.console import RenderableType

    from kdbench.store.runs import Seen, Worker

PAUSE = 1.0
"""Seconds between two looks with ``--watch``: how often runs say what they do."""
NO_NEWS = 30.0
"""Seconds without a new state from which a run that goes on is said to be silent."""


def register(app: typer.Typer) -> None:
    """Add the verbs of this module."""
    for verb in (status, logs, cancel):
        app.command()(verb)


def status(
    run: Annotated[
        str | None, typer.Argument(metavar="[RUN]", help="Default: the runs that go on now, or else the last one.")
    ] = None,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Show it again each second until it has ended.")] = False,
    as_json: Json = False,
    results: Results = DEFAULT_RESULTS,
) -> None:
    """What a run does: each of its jobs with step, speed, device and memory; each suite with what is done and left.

    Example: kdbench status --watch
    """
    from kdbench.store import runs

    ids = [runs.find(results, run)] if run is not None else [seen.id for seen in runs.live(results)]
    ids = ids or runs.ids(results)[:1]
    if not ids:
        raise runs.no_runs(results)
    if not watch:
        found = _look(results, ids)
        if as_json:
            print_json(_data(found))
        else:
            _print(_blocks(results, found))
    elif as_json:
        for found in _looks(results, ids):
            typer.echo(json.dumps(_data(found), ensure_ascii=False))
    elif sys.stdout.isatty():
        _show(results, ids)
    else:
        for found in _looks(results, ids):
            _print(_blocks(results, found))


def logs(
    id: Id,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Go on until the job has ended, whether it has started or not.")
    ] = False,
    tail: Annotated[int | None, typer.Option("--tail", "-n", min=1, help="The last lines only.")] = None,
    results: Results = DEFAULT_RESULTS,
) -> None:
    """What a job wrote to its log.

    Example: kdbench logs -f 3f2a
    """
    from kdbench.schedule import follow as following
    from kdbench.store import runs, spool

    waiting = runs.waiting(results)
    job = spool.find_job(results, id, waiting).name
    path = runs.work_folder(results, job) / spool.LOG
    try:
        if follow:
            for said in following.follow(results, job, tail=tail):
                _say(said.text, note=said.note)
            return
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except BrokenPipeError:
        raise  # whoever reads this has closed it; the log is fine
    except FileNotFoundError:
        if job in waiting and not path.parent.exists():
            raise UsageError("this job waits for its turn", place=job, hint=f"kdbench logs -f {job}") from None
        raise UsageError("this job wrote no log", place=str(path)) from None
    except OSError as error:
        raise UsageError(f"cannot be read: {error.strerror or error}", place=str(path)) from error
    for line in lines[-tail:] if tail else lines:
        _say(line)


def _say(line: str, note: bool = False) -> None:
    """A line of a log, or on stderr a note on its job."""
    if note:
        typer.echo(f"[kdbench] {plain(line)}", err=True)
        return
    # a terminal must not take what a method printed for commands; a file gets it as it is
    print(plain(line.expandtabs()) if sys.stdout.isatty() else line, flush=True)


def cancel(
    id: Annotated[str, typer.Argument(metavar="JOB|RUN", help="The beginning of its id is enough.")],
    results: Results = DEFAULT_RESULTS,
) -> None:
    """End a job, or a run as Ctrl-C does: what is finished is kept, and the next run does the rest.

    Example: kdbench cancel 3f2a
    """
    from kdbench.schedule import requests
    from kdbench.store import runs

    if not id:  # as an empty variable of a script gives it: it would mean whatever runs
        raise UsageError("cancel what?", hint="give the id of a job or of a run; kdbench status shows them")
    live = runs.live(results)
    going = [seen.id for seen in live]
    waiting = runs.waiting(results)
    jobs = [id] if id in waiting else [job for job in waiting if job.startswith(id)]
    found = [*runs.matching(going, id), *jobs]
    if len(found) > 1:
        raise UsageError(
            f"{len(found)} jobs and runs have an id that starts with {id!r}: {runs.in_short(found)}",
            hint="give more of it",
        )
    if not found:
        raise _nothing_to_cancel(results, id, [*going, *waiting])
    job = jobs[0] if jobs else None
    # of several runs that have the job to do, the one that does it is asked; the others take note of what becomes of it
    doing = [seen.id for seen in live if any(worker.job == job for worker in seen.state.workers)]
    asked = [found[0]] if job is None else doing or waiting[job]
    try:
        for run in asked:
            requests.post(results, run, job)
    except OSError as error:
        raise UsageError(f"cannot be written: {error.strerror or error}", place=str(results)) from error
    if job is None:
        typer.echo(f"run {asked[0]} is asked to stop; what is finished is kept")
        return
    title = runs.jobs(results, asked[0])[job]
    typer.echo(f"job {job} ({title}) is asked to end; the run goes on, and the next run does the job again")


def _nothing_to_cancel(results: Path, id: str, known: Sequence[str]) -> UsageError:
    """Why nothing that runs has this id."""
    from kdbench.store import runs, spool

    for run in runs.matching(runs.ids(results), id):
        seen = runs.seen(results, run)
        if seen is not None:
            return UsageError(f"this run does not go on any more: {_phase(seen)}", place=run)
    folders = [folder for folder in spool.iter_folders(results) if folder.name.startswith(id)]
    outcome = spool.read_raw(folders[0]) if len(folders) == 1 else None
    if outcome is not None:
        return UsageError(f"this job has ended already, as {outcome['status']}", place=folders[0].name)
    if not known:
        return UsageError("nothing runs here now", place=str(results), hint="kdbench status says what ran last")
    return UsageError(f"nothing that runs now has the id {id!r}", place=str(results), hint=did_you_mean(id, known))


# --- looking ----------------------------------------------------------------------------------------------------------


def _look(results: Path, ids: Sequence[str]) -> list[Seen]:
    from kdbench.store import runs

    return [seen for seen in (runs.seen(results, id) for id in ids) if seen is not None]


def _looks(results: Path, ids: Sequence[str]) -> Iterator[list[Seen]]:
    """The runs, each second, until all have ended."""
    while True:
        found = _look(results, ids)
        yield found
        if not any(seen.live for seen in found):
            return
        time.sleep(PAUSE)


def _data(found: Sequence[Seen]) -> list[dict[str, Any]]:
    return [{"phase": seen.phase, **seen.state.model_dump(mode="json")} for seen in found]


# --- for people -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Table:
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    right: Sequence[str]


def _print(blocks: Sequence[str | _Table]) -> None:
    for block in blocks:
        if isinstance(block, str):
            typer.echo(block)
        else:
            table(block.columns, block.rows, right=block.right)


def _show(results: Path, ids: Sequence[str]) -> None:
    """The runs on a terminal, in place."""
    from rich.console import Group
    from rich.live import Live
    from rich.text import Text

    def rendered(blocks: Sequence[str | _Table]) -> RenderableType:
        return Group(
            *(
                Text(block) if isinstance(block, str) else drawn(block.columns, block.rows, right=block.right)
                for block in blocks
            )
        )

    with Live(auto_refresh=False) as display:
        for found in _looks(results, ids):
            display.update(rendered(_blocks(results, found)), refresh=True)


def _blocks(results: Path, found: Sequence[Seen]) -> list[str | _Table]:
    """What a person sees of runs: for each, what it is, its suites and its jobs."""
    from kdbench.store import runs

    blocks: list[str | _Table] = []
    for seen in found:
        state = seen.state
        blocks.append(f"run {state.id}: {_phase(seen)}")
        blocks.append(f"  {plain(shlex.join(state.command))}  (pid {state.pid} on {plain(state.host)})")
        blocks.append(_suites(seen))
        if seen.live and state.workers:
            blocks.append(_workers(state.workers, state.host))
    if any(seen.live for seen in found):
        blocks += [f"a teacher is being made: kdbench logs -f {name}" for name in runs.teachers(results)]
    return blocks


def _phase(seen: Seen) -> str:
    """What a run does or came to, in a line."""
    from kdbench.job import utcnow
    from kdbench.quantities import show_duration

    state, after = seen.state, f"after {show_duration(seen.state.seconds)}"
    if seen.phase == "running":
        silent = (utcnow() - state.updated).total_seconds()
        news = f", but silent for {show_duration(silent)}" if silent > NO_NEWS else ""
        return f"running for {show_duration(state.seconds)}, up to {state.slots} at a time{news}"
    left = state.total.left + state.total.cancelled
    again = f"{left} job{'s are' if left != 1 else ' is'} left for the same command" if left else "no job is left"
    if seen.phase == "finished":
        return f"finished {after} with exit code {state.exit_code}"
    if seen.phase == "interrupted":
        return f"interrupted {after}; {again}"
    if seen.phase == "failed":
        reason = plain(" ".join(state.error.split()))[:300] or "without an exit code"
        return f"ended {after}: {reason}; {again}"
    return f"died {after} or later, without a word; {again}"


def _suites(seen: Seen) -> _Table:
    from kdbench.quantities import show_duration

    state = seen.state
    shown = [*state.suites, state.total] if len(state.suites) > 1 else state.suites
    columns = ("suite", "jobs", "done before", "done", "failed", "cancelled", "running", "left", "time left")
    rows = []
    for suite in shown:
        eta = suite.eta_seconds if seen.live and suite.left else None
        counts = (suite.jobs, suite.before, suite.done, suite.failed, suite.cancelled, suite.running, suite.left)
        name = plain(suite.name) or "all, each job once"
        rows.append((name, *map(str, counts), "" if eta is None else f"about {show_duration(eta)}"))
    return _Table(columns, rows, columns[1:])


def _workers(workers: Sequence[Worker], host: str) -> _Table:
    from kdbench.quantities import show_bytes, show_duration

    columns = ("job", "task", "method", "seed", "step", "steps/s", "for", "device", "memory", "GPU memory")
    rows = []
    for worker in workers:
        device = " ".join(f"GPU {plain(device)[:12]}" for device in worker.devices) or "cpu"
        rows.append(
            (
                worker.job[:8] + (f" (attempt {worker.attempt})" if worker.attempt > 1 else ""),
                f"{worker.task}@{worker.scale}",
                plain(worker.label or worker.method),
                str(worker.seed),
                f"{worker.step}{f'/{worker.total}' if worker.total else ''}" if worker.step else "starting",
                "" if worker.rate is None else f"{worker.rate:.3g}",
                show_duration(worker.seconds),
                device if worker.host == host else f"{device} of {plain(worker.host)}",
                "" if worker.rss_bytes is None else show_bytes(worker.rss_bytes),
                "" if worker.gpu_bytes is None else show_bytes(worker.gpu_bytes),
            )
        )
    return _Table(columns, rows, ("seed", "step", "steps/s", "for", "memory", "GPU memory"))
