"""What a person sees of a run: one live display on a terminal, a line per job elsewhere."""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, TextIO

from kdbench.errors import plain
from kdbench.hookspecs import hookimpl
from kdbench.job import Job, Outcome, Place, Run
from kdbench.quantities import show_bytes, show_duration
from kdbench.schedule.tally import Running, RunTally, Workers, title

if TYPE_CHECKING:
    from rich.console import Console as RichConsole
    from rich.console import RenderableType
    from rich.live import Live

REFRESH = 4.0
"""Updates of the live display per second."""
LINES = 8
"""Running jobs that the live display shows."""


class Console:
    """Event hooks that print; one object serves one run."""

    def __init__(self, stream: TextIO | None = None, expected: Mapping[str, float | None] | None = None) -> None:
        """``expected``: seconds that jobs take by id, as past outcomes tell."""
        self.stream = stream if stream is not None else sys.stderr
        self.expected = expected
        self.live: Live | None = None
        self.rich: RichConsole | None = None
        self.workers = Workers()
        self.tally: RunTally | None = None
        self.total = 0
        self._handler: logging.Handler | None = None

    @hookimpl(trylast=True)
    def kdbench_run_started(self, run: Run) -> None:
        if not run.todo:
            return
        self.tally = RunTally(run, self.expected)
        self.total = len(run.todo)
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
    def kdbench_job_started(self, run: Run, job: Job, place: Place) -> None:
        self.workers.started(job, place)

    @hookimpl
    def kdbench_job_progress(
        self, run: Run, job: Job, step: int, total: int | None, metrics: Mapping[str, float]
    ) -> None:
        self.workers.progress(job, step, total, metrics)

    @hookimpl
    def kdbench_job_usage(self, run: Run, job: Job, usage: Mapping[str, float]) -> None:
        self.workers.usage(job, usage)

    @hookimpl
    def kdbench_job_stopped(self, run: Run, job: Job) -> None:
        self.workers.ended(job)

    @hookimpl(tryfirst=True)
    def kdbench_job_finished(self, run: Run, job: Job, outcome: Outcome) -> None:
        self.workers.ended(job)
        if self.tally is None:
            return
        self.tally.add(job, outcome)
        if self.live is not None and outcome.status == "ok":
            return
        number = f"[{self.total - self.tally.total.n_left}/{self.total}]"
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

        assert self.tally is not None
        now = self.workers.clock()
        running = list(self.workers.running.values())
        eta = self.tally.eta(running, now)
        total = self.tally.total
        head = Table.grid(padding=(0, 2))
        head.add_row(
            ProgressBar(total=max(1, self.total), completed=self.total - total.n_left, width=24),
            Text(f"{self.total - total.n_left}/{self.total} done"),
            Text(f"{total.n_failed} failed", style="red" if total.n_failed else "dim"),
            Text(f"{len(running)} running"),
            Text(f"{max(0, total.n_left - len(running))} waiting"),
            Text("" if eta is None else f"about {show_duration(eta)} left"),
        )
        body = Table.grid(padding=(0, 2))
        for shown in running[:LINES]:
            body.add_row(Text("  " + title(shown.job)), *(Text(cell, style="dim") for cell in _cells(shown, now)))
        if len(running) > LINES:
            body.add_row(Text(f"  and {len(running) - LINES} more", style="dim"))
        return Group(head, body)


def _cells(running: Running, now: float) -> list[str]:
    """What is shown of a job beside its title."""
    name = "loss" if "loss" in running.metrics else next(iter(running.metrics), None)
    of = f"/{running.total}" if running.total else ""
    memory = running.usage.get("gpu_bytes", running.usage.get("rss_bytes"))
    return [
        f"step {running.step}{of}" if running.step else "starting",
        "" if running.rate is None else f"{running.rate:.3g} steps/s",
        "" if name is None else f"{name} {running.metrics[name]:.4g}",
        "" if memory is None else show_bytes(memory),
        show_duration(now - running.since),
    ]
