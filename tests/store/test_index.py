"""The index of outcomes: never believed against the file, never missed when it is gone."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from kdbench.errors import UsageError
from kdbench.job import Run
from kdbench.store import index, spool
from kdbench.store.index import IndexKeeper, Likeness, OutcomeIndex, Taken
from tests.helpers.outcomes import make_job, make_outcome, put

LATER = 10 * index.RACY


@pytest.fixture
def settled(monkeypatch) -> None:
    """What tests write counts as written long ago."""
    now = index.time.time_ns
    monkeypatch.setattr(index.time, "time_ns", lambda: now() + LATER)


@pytest.fixture
def jobs(tmp_path, settled):
    """Three jobs with outcomes, all in the index."""
    made = [make_job(seed=seed) for seed in range(3)]
    put(tmp_path, [make_outcome(made[0], cost={"peak_rss_bytes": 5.0}), make_outcome(made[1], status="crashed")])
    put(tmp_path, make_outcome(made[2], modules="m1"))
    look(tmp_path, made)
    return made


def look(results: Path, jobs) -> dict[str, index.Gist | None]:
    """What the index says about the jobs, after which it is saved."""
    opened = OutcomeIndex(results)
    found = {job.id: opened.look(job.id) for job in jobs}
    opened.save(set(spool.names(results)))
    return found


@pytest.fixture
def read(monkeypatch) -> list[str]:
    """Ids of the outcomes that are read from now on."""
    ids: list[str] = []
    whole = spool.read_raw

    def watched(folder):
        ids.append(folder.name)
        return whole(folder)

    monkeypatch.setattr(spool, "read_raw", watched)
    return ids


def test_what_was_read_once_is_not_read_again(tmp_path, jobs, read):
    found = look(tmp_path, jobs)
    assert read == []
    ok, crashed, other = (found[job.id] for job in jobs)
    assert (ok.status, ok.like, ok.taken) == ("ok", Likeness.of(jobs[0]), Taken(60.0, 5, None))
    assert (crashed.status, crashed.like, crashed.taken) == ("crashed", None, None)
    assert (ok.modules, other.modules) == ({"kdbench.task": "m0"}, {"kdbench.task": "m1"})
    assert ok.modules is crashed.modules, "ten thousand outcomes of one state of the code have one mapping"


def test_it_says_the_same_without_the_index(tmp_path, jobs):
    before = look(tmp_path, jobs)
    OutcomeIndex(tmp_path).path.unlink()
    assert look(tmp_path, jobs) == before


def test_a_replaced_outcome_is_read_even_where_time_and_size_are_the_same(tmp_path, jobs, read):
    path = spool.job_folder(tmp_path, jobs[0].id) / spool.OUTCOME
    before = path.stat()
    other = json.dumps({**json.loads(path.read_text()), "status": "oom"})
    path.write_text(other.ljust(before.st_size))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    after = path.stat()
    assert (after.st_mtime_ns, after.st_size, after.st_ino) == (before.st_mtime_ns, before.st_size, before.st_ino)
    assert look(tmp_path, jobs)[jobs[0].id].status == "oom"
    assert read == [jobs[0].id]


def test_an_outcome_that_is_gone_is_gone_and_a_new_one_is_found(tmp_path, jobs):
    shutil.rmtree(spool.job_folder(tmp_path, jobs[1].id))
    new = make_job(seed=7)
    put(tmp_path, make_outcome(new))
    found = look(tmp_path, [*jobs, new])
    assert found[jobs[1].id] is None
    assert found[new.id].status == "ok"
    assert jobs[1].id not in OutcomeIndex(tmp_path).path.read_text()


def test_what_was_just_written_is_not_kept(tmp_path, read):
    job = make_job()
    put(tmp_path, make_outcome(job))
    look(tmp_path, [job])
    look(tmp_path, [job])
    assert read == [job.id] * 2


@pytest.mark.parametrize("share", [0.0, 0.01, 0.2, 0.5, 0.9, 0.999])
def test_a_damaged_index_is_made_anew(tmp_path, jobs, read, share):
    before = look(tmp_path, jobs)
    path = OutcomeIndex(tmp_path).path
    whole = path.read_bytes()
    at = int(share * len(whole))
    for damaged in (whole[:at], whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :], b"\0" * len(whole)):
        path.write_bytes(damaged)
        read.clear()
        assert look(tmp_path, jobs) == before
        assert read == [job.id for job in jobs], "nothing of it is believed"
    assert path.read_bytes() == whole


def test_another_form_of_the_index_is_not_used(tmp_path, jobs, read, monkeypatch):
    monkeypatch.setattr(index, "FORMAT", [0, 0])
    look(tmp_path, jobs)
    assert len(read) == 3


def test_an_index_that_was_copied_with_its_folder_is_not_believed(tmp_path, jobs, read):
    other = tmp_path / "other"
    shutil.copytree(tmp_path, other, ignore=shutil.ignore_patterns("other"))  # keeps times of modification
    look(other, jobs)
    assert read == [job.id for job in jobs]


def test_damage_of_an_outcome_is_said_every_time(tmp_path, jobs):
    path = spool.job_folder(tmp_path, jobs[0].id) / spool.OUTCOME
    path.write_text("{")
    for _ in range(2):
        opened = OutcomeIndex(tmp_path)
        with pytest.raises(UsageError, match="damaged outcome"):
            opened.look(jobs[0].id)
        opened.save({job.id for job in jobs})


def test_outcomes_that_say_nothing_of_use_still_have_a_status(tmp_path, settled):
    folder = spool.job_folder(tmp_path, "odd")
    folder.mkdir(parents=True)
    for rest in ({}, {"job": None}, {"provenance": 3}, {"provenance": {"modules": {"m": [1]}}}, {"job": {"spec": {}}}):
        (folder / spool.OUTCOME).write_text(json.dumps({"status": "ok", **rest}))
        for _ in range(2):
            opened = OutcomeIndex(tmp_path)
            gist = opened.look("odd")
            assert (gist.status, gist.like) == ("ok", None)
            opened.save({"odd"})


def test_where_it_cannot_be_written_outcomes_are_read_again(tmp_path, settled, read):
    job = make_job()
    put(tmp_path, make_outcome(job))
    (tmp_path / "store").write_text("not a folder")
    assert look(tmp_path, [job]) == look(tmp_path, [job])
    assert read == [job.id] * 2


def test_a_run_leaves_its_outcomes_in_the_index(tmp_path, settled, read, caplog):
    made = [make_job(seed=seed) for seed in range(3)]
    put(tmp_path, [make_outcome(job) for job in made[:2]])
    folder = spool.job_folder(tmp_path, made[2].id)
    folder.mkdir()
    (folder / spool.OUTCOME).write_text("{")
    run = Run(
        id="r", suites={"s": [job.id for job in made]}, results=tmp_path, jobs=made, todo=[job.id for job in made]
    )
    IndexKeeper().kdbench_run_finished(run, [])
    assert "damaged outcome" in caplog.text
    read.clear()
    look(tmp_path, made[:2])
    assert read == []


def test_nothing_is_written_into_a_folder_without_outcomes(tmp_path):
    assert look(tmp_path / "none", [make_job()]) == {make_job().id: None}
    assert not (tmp_path / "none").exists()
