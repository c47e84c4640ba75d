"""Folders of running jobs: one owner, atomic results, nothing left behind."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import time

import pytest

from kdbench.errors import UsageError
from kdbench.schedule import attempts
from kdbench.store import spool, sweep
from tests.helpers.outcomes import make_job, make_outcome, put


@pytest.fixture
def results(tmp_path):
    attempts.require_writable(tmp_path / "results")
    return tmp_path / "results"


def attempt(results, outcome, **files):
    claim = attempts.claim(results, outcome.id)
    folder = claim.clear()
    for name, text in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)
    spool.write_outcome(folder, outcome)
    return claim


def names(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_a_job_has_one_owner_at_a_time(results):
    first = attempts.claim(results, "a")
    assert attempts.claim(results, "a") is None
    other = attempts.claim(results, "b")
    first.release()
    first.release()
    again = attempts.claim(results, "a")
    assert again is not None
    again.release()
    other.release()
    assert list(attempts.running_folder(results).iterdir()) == []


def test_many_processes_never_own_a_job_together(results, tmp_path):
    """Locks are deleted by their owners, so that this could go wrong: every process adds to a number it owns."""
    program = tmp_path / "program.py"
    program.write_text(
        textwrap.dedent("""
            import os, sys, time
            from pathlib import Path
            from kdbench.schedule import attempts
            results, counter, done = Path(sys.argv[1]), Path(sys.argv[2]), 0
            while done < 60:
                claim = attempts.claim(results, "job")
                if claim is None:
                    continue
                value = int(counter.read_text())
                time.sleep(0.0005)
                counter.write_text(str(value + 1))
                claim.release()
                done += 1
        """)
    )
    counter = tmp_path / "counter"
    counter.write_text("0")
    processes = [subprocess.Popen([sys.executable, program, results, counter]) for _ in range(3)]
    assert [process.wait(60) for process in processes] == [0, 0, 0]
    assert counter.read_text() == "180"


def test_a_finished_job_appears_at_once_and_whole(results):
    outcome = make_outcome(make_job())
    claim = attempt(results, outcome, **{"log.txt": "log", "model/weights": "w"})
    assert spool.read_outcome(spool.job_folder(results, outcome.id)) is None
    folder = claim.publish()
    claim.release()
    assert spool.read_outcome(folder) == outcome
    assert names(folder) == ["log.txt", "model/weights", "outcome.json"]
    assert list(attempts.running_folder(results).iterdir()) == []


def test_a_new_outcome_replaces_an_earlier_one_with_all_its_files(results):
    job = make_job()
    attempt(results, make_outcome(job, None, status="failed"), **{"old.txt": "o", "model/old": "o"}).publish()
    os.unlink(attempts.running_folder(results) / f"{job.id}.lock")
    better = make_outcome(job, 0.9)
    claim = attempt(results, better, **{"log.txt": "new", "model/new": "n"})
    folder = claim.publish()
    claim.release()
    assert spool.read_outcome(folder) == better
    assert names(folder) == ["log.txt", "model/new", "outcome.json"]


def test_an_earlier_outcome_holds_until_the_new_one_is_whole(results, monkeypatch):
    job = make_job()
    failed = make_outcome(job, None, status="failed")
    first = attempt(results, failed)
    first.publish()
    first.release()
    claim = attempt(results, make_outcome(job, 0.9), **{"log.txt": "new"})
    real = os.replace

    def power_cut(source, target):
        if str(target).endswith("outcome.json"):
            raise KeyboardInterrupt
        real(source, target)

    monkeypatch.setattr(os, "replace", power_cut)
    with pytest.raises(KeyboardInterrupt):
        claim.publish()
    assert spool.read_outcome(spool.job_folder(results, job.id)) == failed


def test_leftovers_of_killed_runs_are_swept_and_running_jobs_are_not(results):
    running = attempts.claim(results, "running")
    (running.clear() / "file").write_text("x")
    stale = attempts.running_folder(results) / "stale"
    stale.mkdir()
    (stale / "file").write_text("x")
    (attempts.running_folder(results) / "stale.lock").touch()
    (attempts.running_folder(results) / "lonely.lock").touch()
    program = (
        "import sys; from pathlib import Path; from kdbench.schedule import attempts; attempts.sweep(Path(sys.argv[1]))"
    )
    subprocess.run([sys.executable, "-c", program, results], check=True)
    assert names(attempts.running_folder(results)) == ["running.lock", "running/file"]
    running.release()


def test_an_attempt_starts_with_an_empty_folder(results):
    claim = attempts.claim(results, "a")
    (claim.clear() / "file").write_text("x")
    assert list(claim.clear().iterdir()) == []
    claim.release()


HEADER = f"{spool.CHECKPOINT}/{spool.CHECKPOINT_HEADER}"


def interrupt(results, id, **files):
    """An attempt with a checkpoint that ends without an outcome."""
    claim = attempts.claim(results, id)
    folder = claim.clear()
    for name, text in {HEADER: "{}", f"{spool.CHECKPOINT}/fit0-3.pt": "state", "log.txt": "log", **files}.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)
    claim.release()
    return folder


def test_an_interrupted_attempt_leaves_its_checkpoint_to_the_next(results):
    folder = interrupt(results, "a", **{"curve.jsonl": "{}", "artifacts/grid": "x"})
    assert names(folder) == [f"{spool.CHECKPOINT}/fit0-3.pt", HEADER, "log.txt"]
    attempts.sweep(results)
    assert names(folder) == [f"{spool.CHECKPOINT}/fit0-3.pt", HEADER, "log.txt"]
    claim = attempts.claim(results, "a")
    assert names(claim.clear()) == [f"{spool.CHECKPOINT}/fit0-3.pt", HEADER]
    claim.release()
    assert folder.exists()
    assert attempts.sweep(results, anew={"a"}) == 1
    assert list(attempts.running_folder(results).iterdir()) == []


def test_checkpoints_that_no_run_goes_on_from_are_removed_in_the_end(results):
    folder = interrupt(results, "a")
    assert list(sweep.of_results(results, quiet=0)) == []
    long_ago = time.time() - sweep.CHECKPOINTS - 60
    for path in (folder, *folder.rglob("*")):
        os.utime(path, (long_ago, long_ago))
    (remains,) = sweep.of_results(results)
    assert (remains.path, remains.reason) == (folder, "checkpoint that no run went on from")
    assert sweep.remove(remains)
    assert not folder.exists()


def test_half_a_checkpoint_is_none(results):
    claim = attempts.claim(results, "a")
    (claim.clear() / spool.CHECKPOINT).mkdir()
    (claim.folder / spool.CHECKPOINT / "fit0-3.pt").write_text("half")
    claim.release()
    assert list(attempts.running_folder(results).iterdir()) == []


@pytest.mark.parametrize("status", ["ok", "failed", "timeout", "crashed"])
def test_a_job_that_has_ended_keeps_no_checkpoint(results, status):
    outcome = make_outcome(make_job(), 0.5 if status == "ok" else None, status=status)
    interrupt(results, outcome.id)
    claim = attempt(results, outcome, **{"log.txt": "log"})
    folder = claim.publish()
    claim.release()
    assert names(folder) == ["log.txt", "outcome.json"]
    assert list(attempts.running_folder(results).iterdir()) == []


def test_a_job_that_was_cancelled_has_an_outcome_and_a_checkpoint(results):
    outcome = make_outcome(make_job(), None, status="interrupted")
    for _ in range(2):
        left = interrupt(results, outcome.id)
        claim = attempt(results, outcome, **{"log.txt": "log"})
        folder = claim.publish()
        claim.release()
        assert names(folder) == ["log.txt", "outcome.json"]
        assert names(left) == [f"{spool.CHECKPOINT}/fit0-3.pt", HEADER]
        attempts.sweep(results)
        assert left.exists()
    better = make_outcome(make_job(), 0.9)
    claim = attempt(results, better)
    claim.publish()
    claim.release()
    assert spool.read_outcome(folder) == better
    assert names(folder) == ["outcome.json"]
    assert list(attempts.running_folder(results).iterdir()) == []


def test_the_checkpoint_of_a_job_that_was_done_elsewhere_goes(results):
    outcome = make_outcome(make_job())
    put(results, outcome)
    interrupt(results, outcome.id)
    attempts.sweep(results)
    assert list(attempts.running_folder(results).iterdir()) == []


def test_results_that_cannot_be_written_are_one_message(tmp_path):
    place = tmp_path / "results"
    place.write_text("a file")
    with pytest.raises(UsageError, match="cannot be written") as caught:
        attempts.require_writable(place)
    assert len(caught.value.problems) == 1


def test_a_damaged_outcome_of_an_attempt_counts_as_none(tmp_path):
    assert attempts.outcome_in(tmp_path) is None
    (tmp_path / "outcome.json").write_text('{"id": "a"')
    assert attempts.outcome_in(tmp_path) is None
