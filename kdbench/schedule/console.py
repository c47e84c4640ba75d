"""What a person sees of a run: one live display on a terminal, a line per job elsewhere."""

from __future__ import annotations

import logging
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TextIO

from kdbench.errors import plain
from kdbench.hookspecs import hookimpl
from kdbench.job import Job, Outcome, Run
from kdbench.quantities import show_duration

if TYPE_CHECKING:
    from rich.console import Console as RichConsole
    from rich.console import RenderableType
    from rich.live import Live

REFRESH = 4.0
"""Updates of the live display per second."""
LINES = 8
"""Running jobs that the live display shows."""


@dataclass
class _Shown:
    """A job that runs."""

    job: Job
    since: float
    step: int = 0
    total: int | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)


def title(job: Job) -> str:
    """A job in a few words: task, method, seed."""
    return f"{job.task}@{job.scale}  {job.label or job.method.partition('/')[2]}  seed {job.seed}"


class Tally:
    """How far a run is, and how long the rest may take."""

    def __init__(self, todo: Sequence[Job], workers: int) -> None:
        self.left = Counter(self._kind(job) for job in todo)
        self.workers = max(1, workers)
        self.seconds: Counter[tuple[str, str]] = Counter()
        self.finished: Counter[tuple[str, str]] = Counter()
        self.statuses: Counter[str] = Counter()

    @staticmethod
    def _kind(job: Job) -> tuple[str, str]:
        return job.spec_digest, job.method

    def add(self, job: Job, outcome: Outcome) -> None:
        kind = self._kind(job)
        self.left[kind] -= 1
        self.finished[kind] += 1
        self.seconds[kind] += max(0.0, outcome.seconds)  # type: ignore[assignment]
        self.statuses[outcome.status] += 1

    @property
    def n_left(self) -> int:
        return self.left.total()

    @property
    def n_done(self) -> int:
        return self.statuses.total()

    @property
    def n_failed(self) -> int:
        return self.n_done - self.statuses["ok"]

    def eta(self, running: Mapping[tuple[str, str], float]) -> float | None:
        """Seconds until the last job ends, from what like jobs took; None before any has ended.

        Jobs of a kind that none has ended of count as the mean of all. ``running`` are seconds already spent.
        """
        if not self.n_done:
            return None
        mean = self.seconds.total() / self.n_done
        total = sum(
            count * (self.seconds[kind] / self.finished[kind] if self.finished[kind] else mean)
            for kind, count in self.left.items()
        )
        return max(0.0, total - sum(running.values())) / min(self.workers, max(1, self.n_left))


class Console:
    """Event hooks that print; one object serves one run."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self.stream = stream if stream is not None else sys.stderr
        self.live: Live | None = None
        self.rich: RichConsole | None = None
        self.running: dict[str, _Shown] = {}
        self.tally = Tally((), 1)
        self.total = 0
        self._handler: logging.Handler | None = None

    @hookimpl(trylast=True)
    def kdbench_run_started(self, run: Run) -> None:
        if not run.todo:
            return
        todo = set(run.todo)
        self.tally = Tally([job for job in run.jobs if job.id in todo], run.workers)
        self.total = len(todo)
        if self.stream.isatty():
            from rich.console import Console as RichConsole
            from rich.live import Live

            self.rich = RichConsole(file=self.stream)
            self.live = Live(console=self.rich, refresh_per_second=REFRESH, get_renderable=self._draw, transient=True)
            self.live.start()
        before = len(run.jobs) - self.total
        self._say(
            f"{run.suite}: {self.total} of {len(run.jobs)} jobs to run"
            + (f", {before} done before" if before else "")
            + f", {run.workers} at a time"
        )
        self._watch_log()

    @hookimpl
    def kdbench_job_started(self, run: Run, job: Job) -> None:
        self.running[job.id] = _Shown(job, time.monotonic())

    @hookimpl
    def kdbench_job_progress(
        self, run: Run, job: Job, step: int, total: int | None, metrics: Mapping[str, float]
    ) -> None:
        shown = self.running.get(job.id)
        if shown is not None:
            shown.step, shown.total, shown.metrics = step, total if total is not None else shown.total, metrics

    @hookimpl(tryfirst=True)
    def kdbench_job_finished(self, run: Run, job: Job, outcome: Outcome) -> None:
        self.running.pop(job.id, None)
        self.tally.add(job, outcome)
        if self.live is not None and outcome.status == "ok":
            return
        number = f"[{self.tally.n_done}/{self.total}]"
        self._say(f"{number} {outcome.status:<6} {title(job)}  {self._result(job, outcome)}", outcome.status != "ok")

    @staticmethod
    def _result(job: Job, outcome: Outcome) -> str:
        if outcome.error is not None:
            reason = plain(" ".join(outcome.error.message.split()))
            kind = "" if outcome.error.type in (outcome.status, "teacher") else f"{plain(outcome.error.type)}: "
            return f"{kind}{reason[:300]}  (kdbench logs {outcome.id})"
        name = job.spec["headline"]["name"]
        value = "" if outcome.headline is None else f"{name} {outcome.headline:.4g}, "
        return f"{value}{show_duration(outcome.seconds)}"

    @hookimpl(tryfirst=True)
    def kdbench_run_finished(self, run: Run, outcomes: Sequence[Outcome]) -> None:
        if self.live is not None:
            self.live.stop()
            self.live = None
        if self._handler is not None:
            logging.getLogger("kdbench").removeHandler(self._handler)
            self._handler = None

    # --- printing -----------------------------------------------------------------------------------------------------

    def _say(self, text: str, alarming: bool = False) -> None:
        """A line above the live display, or simply a line."""
        if self.rich is not None and self.live is not None:
            self.rich.print(text, style="yellow" if alarming else None, markup=False, highlight=False, soft_wrap=True)
        else:
            print(text, file=self.stream, flush=True)

    def _watch_log(self) -> None:
        """Show warnings of kdbench itself where they do not tear the display."""

        class Handler(logging.Handler):
            def emit(handler, record: logging.LogRecord) -> None:
                self._say(f"{record.levelname.lower()}: {record.getMessage()}", alarming=True)

        self._handler = Handler(level=logging.WARNING)
        logging.getLogger("kdbench").addHandler(self._handler)

    def _draw(self) -> RenderableType:
        from rich.console import Group
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        now = time.monotonic()
        running = list(self.running.values())
        spent: Counter[Any] = Counter()
        for shown in running:
            spent[(shown.job.spec_digest, shown.job.method)] += now - shown.since  # type: ignore[assignment]
        eta = self.tally.eta(spent)
        failed = self.tally.n_failed
        head = Table.grid(padding=(0, 2))
        head.add_row(
            ProgressBar(total=max(1, self.total), completed=self.tally.n_done, width=24),
            Text(f"{self.tally.n_done}/{self.total} done"),
            Text(f"{failed} failed", style="red" if failed else "dim"),
            Text(f"{len(running)} running"),
            Text(f"{max(0, self.tally.n_left - len(running))} waiting"),
            Text("" if eta is None else f"about {show_duration(eta)} left"),
        )
        body = Table.grid(padding=(0, 2))
        for shown in running[:LINES]:
            loss = shown.metrics.get("loss", next(iter(shown.metrics.values()), None))
            of = f"/{shown.total}" if shown.total else ""
            body.add_row(
                Text("  " + title(shown.job)),
                Text(f"step {shown.step}{of}" if shown.step else "starting", style="dim"),
                Text("" if loss is None else f"loss {loss:.4g}", style="dim"),
                Text(show_duration(now - shown.since), style="dim"),
            )
        if len(running) > LINES:
            body.add_row(Text(f"  and {len(running) - LINES} more", style="dim"))
        return Group(head, body)
