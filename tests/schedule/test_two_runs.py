"""Two runs of one suite at once, each a process of its own: jobs are shared, none runs twice, nothing is corrupted."""

from __future__ import annotations

import shutil

from kdbench.store import spool
from tests.helpers.scenes import kept


def test_two_runs_share_the_jobs_and_build_a_teacher_once(scene):
    here = scene("quick", "slow", "parents", tasks=["toy/line@smoke", "toy/bare@smoke"], seeds=3)
    runs = [here.start(name=f"run{number}") for number in range(2)]
    assert [run.end() for run in runs] == [0, 0], "\n".join(run.text for run in runs)
    assert len(list((here.folder / "cache").glob("teacher/*/entry.json"))) == 1
    begun = here.traced("begin")
    assert len(begun) == len(set(begun)) == 18, "each job ran once"
    for run in runs:
        assert "18 jobs: 18 ok" in run.text, "each tells the whole"
    here.require_finished(jobs=18)


def test_what_a_killed_run_had_is_taken_over_by_the_other_one(scene):
    here = scene("waits", "quick", seeds=2)
    first = here.start("--filter", "waits", name="first")
    first.until(lambda: len(here.traced("begin")) == 2, "both jobs that wait run")
    waiting = here.traced("begin")
    second = here.start(name="second")
    second.until(lambda: len(here.stamps()) == 2, "the other run does the other jobs")
    assert here.traced("begin").count(waiting[0]) == here.traced("begin").count(waiting[1]) == 1
    first.process.kill()
    first.process.wait()
    second.until(lambda: len(here.traced("begin")) == 6, "and then begins those of the killed run")
    here.let_go()
    assert second.end() == 0, second.text
    here.require_finished(jobs=4)


def test_two_runs_that_do_everything_again_leave_one_outcome_each(scene):
    here = scene("quick", seeds=30, suite={"executor": "here"})
    assert here.run(name="before").code == 0
    before = here.stamps()
    runs = [here.start("--fresh", name=f"run{number}") for number in range(2)]
    assert [run.end() for run in runs] == [0, 0], "\n".join(run.text for run in runs)
    assert sorted(kept(before, here.stamps())) == sorted(before), "each was done again"
    here.require_finished(jobs=30)


def test_a_machine_that_died_leaves_nothing_that_the_next_one_minds(scene):
    """Everything is killed at one moment, and what is on the disk is copied elsewhere: its locks are nobody's."""
    here = scene("quick", "waits", "parents", tasks=["toy/line@smoke"], seeds=1)
    first = here.start(name="first")
    first.until(lambda: len(here.stamps()) == 2 and len(here.traced("begin")) == 3, "two jobs are done, one runs")
    for process in here.processes():
        process.suspend()  # as one moment: nothing can react to the end of the others
    for process in here.processes():
        process.kill()
    first.process.wait()
    here.require_quiet()
    (waiting,) = (path.name for path in (here.results / "running").iterdir() if path.is_dir())

    moved = here.folder / "moved"
    shutil.copytree(here.results, moved)
    here.results = moved
    here.let_go()
    before = here.stamps()
    assert waiting not in before
    again = here.run("--json", name="again")
    assert again.code == 0, again.text
    assert not kept(before, here.stamps())
    assert sorted(here.traced("begin")) == sorted([*before, waiting, waiting]), "what was done is not done again"
    assert spool.read_outcome(spool.job_folder(moved, waiting)).attempts == 1, "as if it had never started"
    here.require_finished(jobs=3)
