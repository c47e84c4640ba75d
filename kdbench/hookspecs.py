"""Every hook of kdbench on one page.

A *method* implements ``train`` and ``evaluate``. Everything else that can be added to kdbench is one of the
``kdbench_*`` hooks: tracks, tasks, suites, executors, report sections, and the events of a run. The DuckDB store,
the MLflow reporter, the console progress and the local executor are implementations of these hooks, with no
privileged path.

Implement a hook by decorating a function of the same name with ``kdbench.hookimpl``; take only the arguments
that you need.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pluggy

if TYPE_CHECKING:
    from kdbench.job import Job, Outcome, Place, Run
    from kdbench.params import Params
    from kdbench.schedule.executor import Executor
    from kdbench.spec import Track
    from kdbench.task import Task

PROJECT = "kdbench"
hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


class MethodHooks:
    """What a method plugin implements; each is called once per job, in a worker process."""

    @hookspec(firstresult=True)
    def train(self, task: Task, params: Params) -> Any:
        """Make what the task's track evaluates (usually a trained student) and return it.

        ``task.score`` raises here; ``task.validate`` is what training may look at.
        """

    @hookspec(firstresult=True)
    def evaluate(self, task: Task, model: Any, params: Params) -> Mapping[str, float]:
        """Return the task's official metrics (``task.score(model)``) and whatever only this method measures.

        Official values may not be changed. Optional: without it the official metrics are used.
        """
        return {}


class ContributionHooks:
    """What an extension adds to kdbench; results of all extensions are joined."""

    @hookspec
    def kdbench_tracks(self) -> Sequence[Track]:
        """Tracks of this extension."""
        return ()

    @hookspec
    def kdbench_tasks(self) -> Sequence[Path]:
        """YAML files with more tasks for existing tracks (same form as a track's ``tasks.yaml``)."""
        return ()

    @hookspec
    def kdbench_suites(self) -> Mapping[str, Path]:
        """Suites that ``kdbench run NAME`` finds by name."""
        return {}

    @hookspec
    def kdbench_executors(self) -> Mapping[str, Callable[..., Executor]]:
        """Factories of executors by the name that a suite's ``executor:`` gives."""
        return {}

    @hookspec
    def kdbench_report_sections(self, results: Path) -> Mapping[str, str]:
        """Sections (title to Markdown) that the results page of a folder gets."""
        return {}


class EventHooks:
    """What happens during a run; called in the coordinating process, never in the path of a job.

    An implementation that raises is reported once and left out for the rest of the run.
    """

    @hookspec
    def kdbench_run_started(self, run: Run) -> None:
        """Before the first job: ``run.jobs`` are all jobs of the plan, ``run.todo`` the ids that will run."""

    @hookspec
    def kdbench_job_started(self, run: Run, job: Job, place: Place) -> None:
        """A worker took the job; again, with the next attempt, where it is tried once more."""

    @hookspec
    def kdbench_job_progress(
        self, run: Run, job: Job, step: int, total: int | None, metrics: Mapping[str, float]
    ) -> None:
        """At most twice a second per job: optimizer steps so far, steps in all where known, latest logged values."""

    @hookspec
    def kdbench_job_usage(self, run: Run, job: Job, usage: Mapping[str, float]) -> None:
        """About once a second per job: ``rss_bytes`` and, on GPUs, ``gpu_bytes``, both with its child processes'."""

    @hookspec
    def kdbench_job_stopped(self, run: Run, job: Job) -> None:
        """An attempt ended without an outcome: the job is tried once more, or left to the next run."""

    @hookspec
    def kdbench_job_finished(self, run: Run, job: Job, outcome: Outcome) -> None:
        """The outcome is in the spool."""

    @hookspec
    def kdbench_run_finished(self, run: Run, outcomes: Sequence[Outcome]) -> None:
        """After the last job, or after an interruption: the outcomes of all jobs of the plan that have one."""
