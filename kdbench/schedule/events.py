"""Tells the hooks what happens. One that fails is reported once and left out; the run goes on."""

from __future__ import annotations

import logging
import traceback
from collections.abc import Mapping, Sequence
from typing import Any

import pluggy

from kdbench.job import Job, Outcome, Place, Run

log = logging.getLogger(__name__)


class Events:
    """The event hooks of a manager, called one implementation at a time."""

    def __init__(self, manager: pluggy.PluginManager, run: Run) -> None:
        self.manager = manager
        self.run = run
        self.failed: set[str] = set()
        """Names of the plugins that are left out."""
        self._callers: dict[str, list[tuple[str, Any]]] = {}

    def run_started(self) -> None:
        self._tell("kdbench_run_started")

    def job_started(self, job: Job, place: Place) -> None:
        self._tell("kdbench_job_started", job=job, place=place)

    def job_progress(self, job: Job, step: int, total: int | None, metrics: Mapping[str, float]) -> None:
        self._tell("kdbench_job_progress", job=job, step=step, total=total, metrics=metrics)

    def job_usage(self, job: Job, usage: Mapping[str, float]) -> None:
        self._tell("kdbench_job_usage", job=job, usage=usage)

    def job_stopped(self, job: Job) -> None:
        self._tell("kdbench_job_stopped", job=job)

    def job_finished(self, job: Job, outcome: Outcome) -> None:
        self._tell("kdbench_job_finished", job=job, outcome=outcome)

    def run_finished(self, outcomes: Sequence[Outcome]) -> None:
        self._tell("kdbench_run_finished", outcomes=outcomes)

    def _tell(self, hook: str, **arguments: Any) -> None:
        for name, call in self._implementations(hook):
            if name in self.failed:
                continue
            try:
                call(run=self.run, **arguments)
            except Exception as error:  # noqa: BLE001 - an extension's failure is not the run's
                self.failed.add(name)
                log.error("%s failed in %s and is left out from now on: %s: %s", name, hook, _kind(error), error)
                log.debug("%s", "".join(traceback.format_exception(error)))

    def _implementations(self, hook: str) -> list[tuple[str, Any]]:
        """A caller for each plugin that implements the hook, in pluggy's order."""
        if hook not in self._callers:
            everyone = self.manager.get_plugins()
            self._callers[hook] = [
                (
                    implementation.plugin_name,
                    self.manager.subset_hook_caller(hook, [p for p in everyone if p is not implementation.plugin]),
                )
                for implementation in reversed(getattr(self.manager.hook, hook).get_hookimpls())
            ]
        return self._callers[hook]


def _kind(error: Exception) -> str:
    return type(error).__name__
