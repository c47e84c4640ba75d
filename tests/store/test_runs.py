"""Reading the state of runs: which there are, which go on, what is said where there is nothing to read."""

from __future__ import annotations

import os
import time

import pytest
from filelock import FileLock

from kdbench.errors import UsageError
from kdbench.schedule.watch import Watch
from kdbench.store import runs, spool, sweep
from tests.helpers.outcomes import make_job, make_outcome, put
from tests.helpers.runs import make_run


def past(results, *ids, code=0):
    """Runs that have ended."""
    for id in ids:
        with Watch(make_run(results, [make_job()], id=id)) as watch:
            watch.kdbench_run_started(run=watch.run)
            watch.exit_code = code


def test_the_latest_run_comes_first_and_only_whole_ones_count(tmp_path):
    assert runs.ids(tmp_path) == []
    past(tmp_path, "20260101T000000-aaaaaa", "20260102T000000-bbbbbb")
    runs.run_folder(tmp_path, "20260103T000000-cccccc").mkdir()
    assert runs.ids(tmp_path) == ["20260102T000000-bbbbbb", "20260101T000000-aaaaaa"]
    assert runs.seen(tmp_path, "20260103T000000-cccccc") is None
    assert runs.live(tmp_path) == []


def test_a_run_is_found_by_the_beginning_of_its_id_or_of_its_last_part(tmp_path):
    with pytest.raises(UsageError, match="no runs yet"):
        runs.find(tmp_path, "x")
    past(tmp_path, "20260101T000000-aaaaaa", "20260102T000000-bbbbbb", "20260102T000001-abbbbb")
    assert runs.find(tmp_path, "20260101") == "20260101T000000-aaaaaa"
    assert runs.find(tmp_path, "bb") == "20260102T000000-bbbbbb"
    with pytest.raises(UsageError, match="2 runs have an id like 'a'"):
        runs.find(tmp_path, "a")
    with pytest.raises(UsageError, match="did you mean '20260101T000000-aaaaaa'"):
        runs.find(tmp_path, "20260101T000000-aaaaax")


def test_a_damaged_state_is_named(tmp_path):
    past(tmp_path, "20260101T000000-aaaaaa")
    path = runs.run_folder(tmp_path, "20260101T000000-aaaaaa") / runs.STATE
    for text in ("", "{", '{"id": 1}'):
        path.write_text(text)
        with pytest.raises(UsageError, match=r"state\.json.*delete the folder"):
            runs.seen(tmp_path, "20260101T000000-aaaaaa")


def test_a_line_that_is_being_written_is_left_out(tmp_path):
    past(tmp_path, "20260101T000000-aaaaaa")
    path = runs.run_folder(tmp_path, "20260101T000000-aaaaaa") / runs.ENDED
    path.write_text("a ok\nb timeo")
    assert runs.ended(tmp_path, "20260101T000000-aaaaaa") == {"a": "ok"}


def test_where_a_job_works_and_where_it_is_afterwards(tmp_path):
    job = make_job()
    working = tmp_path / spool.RUNNING / job.id
    working.mkdir(parents=True)
    assert runs.work_folder(tmp_path, job.id) == working, "what a killed run left is all there is"
    put(tmp_path, make_outcome(job))
    assert runs.work_folder(tmp_path, job.id) == spool.job_folder(tmp_path, job.id)
    with FileLock(working.with_name(f"{job.id}.lock")):
        assert runs.is_running(tmp_path, job.id)
        assert runs.work_folder(tmp_path, job.id) == working, "it is done anew"


def test_teachers_that_are_being_made(tmp_path):
    folder = tmp_path / spool.RUNNING
    folder.mkdir()
    (folder / "teacher-old.lock").touch()
    with FileLock(folder / "teacher-new.lock"), FileLock(folder / "abc.lock"):
        assert runs.teachers(tmp_path) == ["teacher-new"]


@pytest.mark.parametrize("id", ["", "..", "a/b", ".x", "a\0b"])
def test_what_is_no_id_is_refused(tmp_path, id):
    with pytest.raises(ValueError, match="not the id of a run"):
        runs.run_folder(tmp_path, id)


def test_old_runs_are_swept_and_those_that_go_on_are_not(tmp_path):
    ids = [f"20260101T0000{second:02}-aaaaaa" for second in range(sweep.RUNS + 3)]
    past(tmp_path, *ids[1:-1])
    died = runs.lock_path(tmp_path, ids[2])
    died.touch()
    then = time.time() - 2 * sweep.HOUR
    with Watch(make_run(tmp_path, [make_job()], id=ids[0])) as watch:
        watch.kdbench_run_started(run=watch.run)
        past(tmp_path, ids[-1])
        for path in runs.runs_folder(tmp_path).rglob("*"):
            os.utime(path, (then, then))
        remains = [remains for remains in sweep.of_results(tmp_path) if "run" in remains.reason]
        assert [one.path.name for one in remains] == [ids[2], ids[1], died.name]
        assert all(sweep.remove(one) for one in remains)
        assert watch.folder.exists()
        assert runs.seen(tmp_path, ids[0]).live
    assert runs.ids(tmp_path) == [*ids[:2:-1], ids[0]]
    assert list(runs.runs_folder(tmp_path).glob("*.lock")) == []
