"""Long jobs through the real scheduler: killed and interrupted again and again, with the result of an untouched run."""

from __future__ import annotations

import random
import signal
import time
from typing import Any

import psutil
import pytest

from kdbench.schedule.session import plan_run
from kdbench.store import spool
from tests.helpers.outcomes import make_outcome, put
from tests.helpers.scenes import Said, Scene
from tests.toytrack import EXTENSION, write_method

LONG = """
import time, torch
from kdbench.training.state import Values

@hookimpl
def train(task, params):
    with traced(task):
        seen = Values(sum=0.0)
        with task.seeded("first"):
            first = task.build_student()

        def loss(model, batch):
            seen.sum = 0.9 * seen.sum + float(torch.rand(()))
            return ((model(batch.x + 0.1 * torch.randn(batch.x.shape)) - batch.y) ** 2).mean() * (1 + seen.sum)

        def slow(step):
            if step == 3:
                task.artifact("training").touch()
            time.sleep(float(os.environ["STEP"]))

        steps = task.budget.steps()
        task.fit(first, loss, steps=steps // 2, spend="aux_steps", tag="first", on_step=slow, state=[seen])
        student = task.student()
        task.fit(student, lambda model, batch: loss(model, batch) + ((model(batch.x) - first(batch.x)) ** 2).mean(),
                 on_step=slow, state=[seen, first], momentum=0.9, lr=0.01)
        return student
"""
TASK = {"task": "toy/bare", "scale": "smoke", "override": {"limits": {"steps": 60}}}
JOBS = 2


@pytest.fixture(autouse=True)
def step(monkeypatch):
    """Seconds of a step are in the environment of the processes that are started."""
    monkeypatch.setenv("STEP", "0")


def options(every: float | None) -> dict[str, Any]:
    return {"tasks": [TASK], "seeds": JOBS, "bodies": {"long": LONG}, "suite": {"checkpoint_every": every}}


@pytest.fixture(scope="module")
def expected(tmp_path_factory) -> dict[str, tuple[dict[str, float], str]]:
    """Metrics and curve of each job, by id, where nothing interrupts them."""
    whole = Scene(tmp_path_factory.mktemp("whole"), ("long",), **options(None))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("STEP", "0")
        assert whole.run().code == 0
    found = results_of(whole)
    assert len(found) == JOBS
    return found


def results_of(made: Scene) -> dict[str, tuple[dict[str, float], str]]:
    """Metrics and curve of each job."""
    return {
        outcome.id: (outcome.metrics, (spool.job_folder(made.results, outcome.id) / spool.CURVE).read_text())
        for outcome in spool.iter_outcomes(made.results)
    }


def headers(made: Scene) -> dict[str, int]:
    """When the checkpoint of each running job was written."""
    found = {}
    for path in made.results.glob(f"running/*/{spool.CHECKPOINT}/{spool.CHECKPOINT_HEADER}"):
        try:
            found[path.parts[-3]] = path.stat().st_mtime_ns
        except FileNotFoundError:
            continue
    return found


def kill(made: Scene, said: Said, *, everything: bool) -> None:
    """End the coordinator with SIGKILL, after its processes or with those that look after themselves."""
    for process in made.processes() if everything else ():
        try:
            process.kill()
        except psutil.NoSuchProcess:
            continue
    said.process.kill()
    said.process.wait(60)
    made.require_quiet()


def test_jobs_that_are_killed_at_random_points_have_the_result_of_an_untouched_run(scene, expected, monkeypatch):
    monkeypatch.setenv("STEP", "0.03")
    made, chance = scene("long", **options(0.02)), random.Random(0)
    for attempt in range(3):
        before = headers(made)
        said = made.start(name=f"said{attempt}")
        said.until(lambda: headers(made) != before and len(headers(made)) == JOBS, "a new checkpoint is written")  # noqa: B023
        time.sleep(0.2 * chance.random())
        kill(made, said, everything=bool(attempt % 2))
    monkeypatch.setenv("STEP", "0")
    assert made.run().code == 0
    made.require_finished(JOBS)
    assert results_of(made) == expected
    for outcome in spool.iter_outcomes(made.results):
        places = [(each["fit"], each["step"]) for each in outcome.provenance["resumed"]]
        assert len(places) == 3
        assert places == sorted(places), "no attempt is behind an earlier one"


def test_ctrl_c_leaves_checkpoints_of_that_moment_and_the_same_command_goes_on(scene, expected, monkeypatch):
    monkeypatch.setenv("STEP", "0.05")
    made = scene("long", **options(600))
    said = made.start()
    started = made.results / "running"
    said.until(lambda: len(list(started.glob("*/artifacts/training"))) == JOBS, "both jobs train")
    said.process.send_signal(signal.SIGINT)
    assert said.end() == 130
    assert len(headers(made)) == JOBS
    left = {path.name for folder in started.iterdir() for path in folder.iterdir()}
    assert left == {spool.CHECKPOINT, spool.LOG}
    assert "which the checkpoint holds" in next(started.glob(f"*/{spool.LOG}")).read_text()

    monkeypatch.setenv("STEP", "0")
    assert made.run().code == 0
    made.require_finished(JOBS)
    assert results_of(made) == expected
    assert all(len(outcome.provenance["resumed"]) == 1 for outcome in spool.iter_outcomes(made.results))


@pytest.mark.parametrize(("chosen", "anew"), [({}, 0), ({"fresh": True}, 4), ({"retry_failed": True}, 1)])
def test_what_is_made_again_on_purpose_starts_anew(tmp_path, chosen, anew):
    """One job is done, one has failed, one was cancelled and one has not run."""
    files = [EXTENSION, write_method(tmp_path, "plain")]
    suite = {"name": "s", "tasks": ["toy/bare"], "methods": ["plain"], "seeds": 4}
    jobs = plan_run(suite, results=tmp_path, plugins=files, tracking=False).run.jobs
    for job, status in zip(jobs, ("ok", "failed", "interrupted"), strict=False):
        put(tmp_path, make_outcome(job, None if status != "ok" else 0.5, status=status))
    session = plan_run(suite, results=tmp_path, plugins=files, tracking=False, **chosen)
    assert len(session.anew) == anew
    assert session.anew <= set(session.run.todo)
    assert (jobs[2].id in session.anew) == chosen.get("fresh", False)
