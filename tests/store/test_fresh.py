"""A store is looked at again exactly when the spool, what is published or the cards may have changed."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from kdbench.errors import Problem
from kdbench.registry import Registry, discover
from kdbench.schedule import attempts
from kdbench.store import duck, fresh, membership, spool
from tests.helpers.outcomes import grid, make_job, make_outcome, put

TICK = 0.05
"""Seconds in which the clock of the file system goes on."""


@pytest.fixture
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Up to date, with a clock that is taken for fine enough."""
    put(tmp_path, grid({"kd": [0.5, 0.6], "no_kd": [0.4, 0.5]}))
    membership.add(tmp_path, "toy", ["x"], None)
    monkeypatch.setattr(fresh, "RACY", -1)
    duck.sync(tmp_path)
    assert duck.is_fresh(tmp_path)
    time.sleep(TICK)
    return tmp_path


def count(results: Path) -> int:
    return int(duck.query(results, lambda con: con.execute("SELECT count(*) FROM jobs").fetchall())[0][0])


def publish(results: Path, id: str, score: float) -> None:
    """Put an outcome of a job into the spool as the scheduler does."""
    attempts.running_folder(results).mkdir(exist_ok=True)
    mine = attempts.claim(results, id)
    assert mine is not None
    old = spool.read_outcome(spool.job_folder(results, id))
    assert old is not None
    mine.clear()
    spool.write_outcome(mine.folder, make_outcome(old.job, score))
    mine.publish()
    mine.release()


def test_a_fresh_store_is_read_without_a_look_at_any_outcome(results: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*args: object, **options: object) -> None:
        raise AssertionError("the spool was looked at")

    for name in ("names", "iter_folders", "stamps", "read_outcome"):
        monkeypatch.setattr(spool, name, never)
    monkeypatch.setattr(duck, "sync", never)
    assert count(results) == 4


def first(results: Path) -> str:
    return next(spool.iter_folders(results)).name


CHANGES: dict[str, Callable[[Path], object]] = {
    "new job": lambda results: put(results, make_outcome(make_job("new"))),
    "replaced by the scheduler": lambda results: publish(results, first(results), 0.9),
    "replaced in its folder": lambda results: put(results, make_outcome(make_job("kd", 0), 0.9)),
    "deleted": lambda results: shutil.rmtree(spool.job_folder(results, first(results))),
    "renamed": lambda results: spool.job_folder(results, first(results)).rename(results / "elsewhere"),
    "suite grows": lambda results: membership.add(results, "toy", ["y"], None),
    "new suite": lambda results: membership.add(results, "other", ["x"], None),
    "published is gone": lambda results: duck.published_path(results).unlink(),
    "published is another": lambda results: duck.published_path(results).write_bytes(b""),
    "published is touched": lambda results: os.utime(duck.published_path(results)),
    "a job alone was ingested": lambda results: (
        put(results, make_outcome(make_job("new"))),
        duck.sync(results, ids=[make_job("new").id]),
    ),
    "seen is gone": lambda results: (results / "store" / fresh.SEEN).unlink(),
    "seen is cut": lambda results: (results / "store" / fresh.SEEN).write_text('{"version": 1, "fol'),
    "seen is something else": lambda results: (results / "store" / fresh.SEEN).write_text("[[[[1]]]]"),
    "seen is of another version": lambda results: edit(results, version=1),
    "seen says there is nothing": lambda results: edit(results, jobs=0),
    "seen is of text": lambda results: edit(results, jobs="4"),
}


def edit(results: Path, **changes: object) -> None:
    path = results / "store" / fresh.SEEN
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize("change", CHANGES)
def test_whatever_changes_is_seen(results: Path, change: str) -> None:
    CHANGES[change](results)
    assert not duck.is_fresh(results)
    spooled = {id: outcome.headline for outcome in spool.iter_outcomes(results) for id in [outcome.id]}
    stored = duck.query(results, lambda con: con.execute("SELECT id, score FROM jobs").fetchall())
    assert dict(stored) == spooled
    assert duck.is_fresh(results)


def test_a_copy_of_the_folder_is_looked_at(results: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    copy = tmp_path_factory.mktemp("copies") / "copy"
    shutil.copytree(results, copy)
    assert not duck.is_fresh(copy)
    assert count(copy) == 4


def test_a_folder_that_has_just_changed_is_not_believed(tmp_path: Path) -> None:
    put(tmp_path, grid({"kd": [0.5]}))
    duck.sync(tmp_path)
    assert not (tmp_path / "store" / fresh.SEEN).exists()
    state = os.stat(spool.jobs_folder(tmp_path))
    put(tmp_path, make_outcome(make_job("kd", 0), 0.9))
    # as on a disk whose clock has ticks of two seconds: the same time, other content
    os.utime(spool.jobs_folder(tmp_path), ns=(state.st_atime_ns, state.st_mtime_ns))
    assert duck.query(tmp_path, lambda con: con.execute("SELECT score FROM jobs").fetchall()) == [(0.9,)]


def test_a_look_is_believed_when_the_folders_have_been_quiet(tmp_path: Path) -> None:
    put(tmp_path, grid({"kd": [0.5]}))
    time.sleep(fresh.RACY / 1e9 + TICK)
    duck.sync(tmp_path)
    assert duck.is_fresh(tmp_path)


def test_a_clock_that_was_set_back_only_costs_time(results: Path) -> None:
    later = time.time() + 3600
    os.utime(spool.jobs_folder(results), (later, later))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fresh, "RACY", 2 * 10**9)
        assert count(results) == 4
        assert not duck.is_fresh(results)
        put(results, make_outcome(make_job("new")))
        os.utime(spool.jobs_folder(results), (later, later))
        assert count(results) == 5


def test_damage_is_reported_to_everyone_who_asks(results: Path) -> None:
    path = spool.job_folder(results, first(results)) / spool.OUTCOME
    put(results, make_outcome(make_job("new")))
    path.write_text("{")
    for _ in range(3):
        problems: list[Problem] = []
        assert duck.query(results, lambda con: con.execute("SELECT count(*) FROM jobs").fetchall(), problems) == [(4,)]
        assert [problem.place for problem in problems] == [str(path)]


def test_a_fresh_store_on_a_disk_that_cannot_be_written(results: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **options: object) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(duck, "writing", refuse)
    assert count(results) == 4


def test_nothing_is_written_while_nothing_changes(results: Path) -> None:
    def state() -> dict[str, int]:
        return {str(path): path.stat().st_mtime_ns for path in results.rglob("*") if path.is_file()}

    before = state()
    count(results)
    membership.add(results, "toy", ["x"], None)
    assert state() == before
    assert duck.is_fresh(results)


def test_other_cards_are_seen_by_who_asks_for_them(results: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    plugin = tmp_path_factory.mktemp("plugins") / "extra.py"
    plugin.write_text(
        "from kdbench import Baseline, hookimpl\n"
        'BASELINE = Baseline(slug="extra", title="Extra", track="vision", tasks=["*"])\n\n\n'
        "@hookimpl\ndef train(task, params):\n    return task.student()\n"
    )

    def titles(registry: Registry | None) -> list[tuple[object, ...]]:
        query = "SELECT title, installed, jobs FROM methods WHERE slug = 'extra'"
        return duck.query(results, lambda con: con.execute(query).fetchall(), registry=registry)

    plain, more = discover(), discover([plugin])
    assert duck.is_fresh(results, plain)
    assert not duck.is_fresh(results, more)
    assert titles(more) == [("Extra", True, 0)]
    assert duck.is_fresh(results, more)
    assert duck.is_fresh(results)
    assert titles(None) == [("Extra", True, 0)]
    assert titles(plain) == []
    plugin.write_text(plugin.read_text().replace('"Extra"', '"Edited"'))
    assert titles(discover([plugin])) == [("Edited", True, 0)]
