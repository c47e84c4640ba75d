"""Hooks are told everything; one that fails is left out and hurts nobody."""

from __future__ import annotations

from kdbench.discovery.extensions import new_manager
from kdbench.hookspecs import hookimpl
from kdbench.job import Place, Run
from kdbench.schedule.events import Events
from tests.helpers.outcomes import make_job, make_outcome


class Recorder:
    def __init__(self):
        self.seen = []

    @hookimpl
    def kdbench_run_started(self, run):
        self.seen.append("started")

    @hookimpl
    def kdbench_job_finished(self, job, outcome):
        self.seen.append(outcome.status)

    @hookimpl
    def kdbench_run_finished(self, outcomes):
        self.seen.append(len(outcomes))


class Broken(Recorder):
    @hookimpl
    def kdbench_job_finished(self, job, outcome):
        self.seen.append("raises")
        raise RuntimeError("the disk of the store is full")


def test_a_hook_that_raises_is_reported_once_and_left_out(tmp_path, caplog):
    manager, good, bad, last = new_manager(), Recorder(), Broken(), Recorder()
    for name, plugin in (("good", good), ("bad", bad), ("last", last)):
        manager.register(plugin, name)
    job = make_job()
    events = Events(manager, Run(id="r", suites={"s": []}, results=tmp_path, jobs=[job], todo=[job.id]))
    events.run_started()
    events.job_started(job, Place(pid=1))
    events.job_finished(job, make_outcome(job))
    events.job_finished(job, make_outcome(job))
    events.run_finished([])
    assert good.seen == last.seen == ["started", "ok", "ok", 0]
    assert bad.seen == ["started", "raises"]
    reports = [record.getMessage() for record in caplog.records]
    assert len(reports) == 1
    assert "bad" in reports[0]
    assert "the disk of the store is full" in reports[0]
