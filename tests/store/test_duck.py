"""The DuckDB store: it equals the spool, heals itself, and readers never meet a lock."""

from __future__ import annotations

import json
import logging
import math
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import duckdb
import pytest

from kdbench.errors import Problem, UsageError
from kdbench.job import Run
from kdbench.store import duck, follow, membership, schema, spool
from tests.helpers.outcomes import grid, make_job, make_outcome, make_spec, put


def rows(results: Path, query: str) -> list[tuple[object, ...]]:
    return duck.query(results, lambda con: con.execute(query).fetchall())


def test_every_column_of_every_view_is_documented(tmp_path: Path) -> None:
    put(tmp_path, make_outcome(make_job()))
    found = rows(
        tmp_path,
        "SELECT table_name, column_name, comment FROM duckdb_columns() WHERE schema_name = 'main' AND NOT internal",
    )
    assert {name for name, _, _ in found} == {view.name for view in schema.VIEWS}
    assert {"jobs", "metrics", "costs", "curves", "leaderboard"} <= {str(name) for name, _, _ in found}
    assert [row for row in found if not row[2]] == []
    views = rows(tmp_path, "SELECT view_name, comment FROM duckdb_views() WHERE schema_name = 'main' AND NOT internal")
    assert all(comment for _, comment in views)


def test_views_hold_what_the_spool_holds(tmp_path: Path) -> None:
    job = make_job("kd", 3, params={"alpha": 0.5}, label="kd(alpha=0.5)")
    curve = [{"step": 1, "loss": 2.0}, {"step": 2, "loss": math.nan}]
    put(tmp_path, make_outcome(job, 0.75, extra={"ece": 0.1, "odd": math.nan}), curve=curve)
    outcome = spool.read_outcome(spool.job_folder(tmp_path, job.id))
    assert outcome is not None
    (found,) = rows(
        tmp_path,
        "SELECT id, task, scale, spec_digest, label, seed, score, params ->> '$.alpha', started_at, finished_at, "
        "seconds, git_commit, git_dirty, headline, current FROM jobs",
    )
    assert found == (
        job.id, "vision/toy", "cpu", job.spec_digest, "kd(alpha=0.5)", 3, 0.75, "0.5", outcome.started_at,
        outcome.finished_at, 60.0, "abc123", False, "top1", True,
    )  # fmt: skip
    metrics = rows(tmp_path, "SELECT metric, value, official, direction FROM metrics ORDER BY metric")
    assert metrics == [
        ("ece", 0.1, False, None), ("nll", 0.25, True, "min"), ("odd", None, False, None), ("top1", 0.75, True, "max"),
    ]  # fmt: skip
    assert dict(rows(tmp_path, "SELECT cost, value FROM costs")) == outcome.cost  # type: ignore[arg-type]
    assert rows(tmp_path, "SELECT step, metric, value FROM curves") == [(1, "loss", 2.0), (2, "loss", None)]


def test_sync_reads_only_what_is_new_and_rebuild_gives_the_same(tmp_path: Path) -> None:
    put(tmp_path, grid({"kd": [0.5, 0.6, None], "no_kd": [0.4, 0.5, 0.6]}))
    assert duck.sync(tmp_path) == 6
    stamp = duck.published_path(tmp_path).stat().st_mtime_ns
    assert duck.sync(tmp_path) == 0
    assert duck.published_path(tmp_path).stat().st_mtime_ns == stamp
    put(tmp_path, make_outcome(make_job("kd", 9)))
    assert duck.sync(tmp_path) == 1
    dump = "SELECT * EXCLUDE (params, limits, artifacts, provenance) FROM jobs ORDER BY id"
    before = rows(tmp_path, dump), rows(tmp_path, "SELECT * FROM metrics ORDER BY ALL")
    assert duck.rebuild(tmp_path) == 7
    assert (rows(tmp_path, dump), rows(tmp_path, "SELECT * FROM metrics ORDER BY ALL")) == before


def test_a_replaced_outcome_replaces_its_rows(tmp_path: Path) -> None:
    job = make_job()
    put(tmp_path, make_outcome(job, status="failed"), curve=[{"step": 1, "loss": 9.0}])
    assert rows(tmp_path, "SELECT status, error FROM jobs") == [("failed", "planted")]
    put(tmp_path, make_outcome(job, 0.5), curve=[{"step": 1, "loss": 1.0}])
    assert rows(tmp_path, "SELECT status, error, score FROM jobs") == [("ok", None, 0.5)]
    assert rows(tmp_path, "SELECT value FROM curves") == [(1.0,)]
    assert rows(tmp_path, "SELECT count(*) FROM costs") == [(len(make_outcome(job).cost),)]
    shutil.rmtree(spool.job_folder(tmp_path, job.id))
    duck.sync(tmp_path)
    with duck.connect(tmp_path) as con:
        assert con.execute("SELECT count(*) FROM jobs").fetchone() == (0,)


def test_an_edited_method_leaves_its_old_results_behind(tmp_path: Path) -> None:
    put(tmp_path, [make_outcome(make_job("kd", 0, digest="old"), 0.1, minutes=1)])
    put(tmp_path, [make_outcome(make_job("kd", 0, digest="new"), 0.9, minutes=2)])
    assert rows(tmp_path, "SELECT score, current FROM jobs ORDER BY score") == [(0.1, False), (0.9, True)]
    assert rows(tmp_path, "SELECT mean, n FROM leaderboard WHERE headline") == [(0.9, 1)]


def test_damage_in_the_spool_is_reported_and_the_rest_is_there(tmp_path: Path) -> None:
    good, bad, huge = put(tmp_path, grid({"kd": [0.5, 0.6, 0.7]}))
    duck.sync(tmp_path)
    path = spool.job_folder(tmp_path, bad.id) / spool.OUTCOME
    path.write_text(path.read_text()[:200])
    other = spool.job_folder(tmp_path, huge.id) / spool.OUTCOME
    content = json.loads(other.read_text())
    other.write_text(json.dumps({**content, "attempts": 2**70}))
    problems: list[Problem] = []
    assert duck.sync(tmp_path, problems=problems) == 0
    assert {problem.place for problem in problems} == {str(path), str(other)}
    assert rows(tmp_path, "SELECT id FROM jobs") == [(good.id,)]


def test_foreign_outcome_in_a_folder_is_refused(tmp_path: Path) -> None:
    (outcome,) = put(tmp_path, make_outcome(make_job()))
    shutil.copytree(spool.job_folder(tmp_path, outcome.id), spool.job_folder(tmp_path, "copy"))
    problems: list[Problem] = []
    assert duck.sync(tmp_path, problems=problems) == 1
    assert outcome.id in problems[0].message


@pytest.mark.parametrize("which", [duck.writer_path, duck.published_path], ids=["private", "published"])
@pytest.mark.parametrize("damage", ["empty", "text", "half", "middle"])
def test_a_corrupt_store_is_moved_aside_and_made_anew(
    tmp_path: Path, which, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    put(tmp_path, grid({f"m{i}": [0.5, 0.6] for i in range(20)}))
    duck.sync(tmp_path)
    path = which(tmp_path)
    whole = path.read_bytes()
    middle = bytearray(whole)
    middle[4096:-4096] = os.urandom(len(whole) - 8192)
    path.write_bytes({"empty": b"", "text": b"hello" * 999, "half": whole[: len(whole) // 2], "middle": middle}[damage])
    put(tmp_path, make_outcome(make_job("new")))
    with caplog.at_level(logging.WARNING):
        if which is duck.published_path:
            duck.published_path(tmp_path).touch()
            os.utime(path, (time.time() + 60, time.time() + 60))
        assert rows(tmp_path, "SELECT count(*) FROM jobs") == [(41,)]
    if which is duck.writer_path:
        assert [r for r in caplog.records if "is damaged" in r.message and str(path) in r.message]
        assert len(list(path.parent.glob("*.damaged-*"))) == 1
    assert duck.damage(duck.published_path(tmp_path)) is None


def test_a_corrupt_snapshot_without_news_is_healed_too(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    put(tmp_path, grid({"kd": [0.5, 0.6]}))
    duck.sync(tmp_path)
    path = duck.published_path(tmp_path)
    before = path.stat().st_mtime_ns
    path.write_bytes(path.read_bytes()[:20_000])
    os.utime(path, ns=(before, before))  # a snapshot of another time would be published anew anyway
    assert rows(tmp_path, "SELECT count(*) FROM jobs") == [(2,)]
    assert len(list(tmp_path.glob("*.damaged-*"))) == 1
    assert sum("is damaged" in record.message for record in caplog.records) == 1


def test_a_store_of_another_version_is_made_anew(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    put(tmp_path, make_outcome(make_job()))
    duck.sync(tmp_path)
    with duckdb.connect(str(duck.writer_path(tmp_path))) as con:
        con.execute("UPDATE store.meta SET value = '0'")
    assert duck.sync(tmp_path) == 1
    assert caplog.records == []
    assert duck.damage(duck.published_path(tmp_path)) is None


def test_results_that_cannot_be_written_are_still_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    put(tmp_path, make_outcome(make_job()))
    (tmp_path / "store").write_text("in the way of the private folder")
    assert rows(tmp_path, "SELECT count(*) FROM jobs") == [(1,)]
    (tmp_path / "store").unlink()
    duck.sync(tmp_path)
    shutil.rmtree(tmp_path / "store")
    (tmp_path / "store").write_text("")
    put(tmp_path, make_outcome(make_job("later")))
    assert rows(tmp_path, "SELECT count(*) FROM jobs") == [(1,)]
    assert "cannot be written" in caplog.text


def test_no_results_says_what_to_run(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "none"):
        with pytest.raises(UsageError, match="kdbench run"):
            duck.query(folder, lambda con: None)
    assert not (tmp_path / "none").exists()


READER = """
import sys, time
from pathlib import Path
from kdbench.store import duck
seen, rounds, end = 0, 0, time.monotonic() + float(sys.argv[2])
print("ready", flush=True)
while seen < int(sys.argv[3]) and time.monotonic() < end:
    with duck.connect(Path(sys.argv[1])) as con:
        jobs, metrics = con.execute("SELECT (SELECT count(*) FROM jobs), (SELECT count(*) FROM metrics)").fetchone()
    assert jobs >= seen and metrics == 2 * jobs, (seen, jobs, metrics)
    seen, rounds = jobs, rounds + 1
print(seen, rounds)
"""


def test_another_process_reads_while_a_run_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(follow._Follower, "PAUSE", 0.02)
    monkeypatch.setattr(follow._Follower, "SHARE", 0.5)
    outcomes = grid({"kd": [0.5] * 60})
    put(tmp_path, outcomes[0])
    duck.sync(tmp_path)
    run = Run(
        id="r",
        suites={"toy": [o.id for o in outcomes]},
        results=tmp_path,
        jobs=[o.job for o in outcomes],
        todo=[o.id for o in outcomes[1:]],
    )
    store = follow.DuckStore()
    with subprocess.Popen(
        [sys.executable, "-c", READER, str(tmp_path), "60", "60"], stdout=subprocess.PIPE, text=True
    ) as reader:
        assert reader.stdout is not None
        assert reader.stdout.readline() == "ready\n"
        store.kdbench_run_started(run)
        for outcome in outcomes[1:]:
            put(tmp_path, outcome)
            store.kdbench_job_finished(run, outcome.job, outcome)
            time.sleep(0.01)
        store.kdbench_run_finished(run, outcomes)
        last, rounds = map(int, reader.stdout.readline().split())
    assert reader.returncode == 0
    assert last == 60
    assert rounds > 5


def test_the_run_gets_the_stores_failure_at_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(follow._Follower, "PAUSE", 0.01)
    (outcome,) = put(tmp_path, make_outcome(make_job()))
    run = Run(id="r", suites={"toy": [outcome.id]}, results=tmp_path, jobs=[outcome.job], todo=[outcome.id])
    store = follow.DuckStore()
    store.kdbench_run_started(run)
    shutil.rmtree(tmp_path / "store", ignore_errors=True)
    (tmp_path / "store").write_text("")
    store.kdbench_job_finished(run, outcome.job, outcome)
    with pytest.raises(OSError, match="store"):
        store.kdbench_run_finished(run, [outcome])


def test_a_run_without_work_stores_what_a_killed_one_did_not(tmp_path: Path) -> None:
    outcomes = put(tmp_path, grid({"kd": [0.5]}))
    run = Run(id="r", suites={"second": [outcomes[0].id]}, results=tmp_path, jobs=[outcomes[0].job], todo=[])
    store = follow.DuckStore()
    store.kdbench_run_started(run)
    store.kdbench_run_finished(run, outcomes)
    with duck.connect(tmp_path) as con:  # what is published, with no reader that brings it up to date
        assert con.execute("SELECT suite, id FROM store.suites").fetchall() == [("second", outcomes[0].id)]
        assert con.execute("SELECT id FROM store.jobs").fetchall() == [(outcomes[0].id,)]


def test_membership_grows_and_survives_damage(tmp_path: Path) -> None:
    membership.add(tmp_path, "a/b ../x", ["1", "2"], None)
    membership.add(tmp_path, "a/b ../x", ["2", "3"], "http://server")
    assert list(membership.every(tmp_path)) == [membership.Members("a/b ../x", ("1", "2", "3"), "http://server")]
    (path,) = (tmp_path / "suites").glob("*.json")
    path.write_text("{")
    problems: list[Problem] = []
    assert list(membership.every(tmp_path, problems)) == []
    assert problems[0].place == str(path)
    membership.add(tmp_path, "a/b ../x", ["4"], None)
    assert [members.jobs for members in membership.every(tmp_path)] == [("4",)]


def test_leaderboard_view_agrees_with_the_statistics_module(tmp_path: Path) -> None:
    from kdbench.leaderboard.boards import load_boards

    put(tmp_path, grid({"kd": [0.5, 0.6, 0.75], "no_kd": [0.4, None, 0.6]}, spec=make_spec(metrics=("nll",))))
    for metric in ("top1", "nll"):
        (board,) = duck.query(tmp_path, lambda con, m=metric: load_boards(con, metric=m))
        view = {
            label: values
            for label, *values in rows(
                tmp_path, f"SELECT label, mean, low, high, n, n_failed FROM leaderboard WHERE metric = '{metric}'"
            )
        }
        for row in board.rows:
            assert row.score is not None
            expected = [row.score.mean, row.score.low, row.score.high, row.score.n, row.n_failed]
            assert view[row.label] == pytest.approx(expected)


def older(results: Path) -> None:
    """Make the store what kdbench wrote before: another version, without the views of today."""
    for path in (duck.writer_path(results), duck.published_path(results)):
        with duckdb.connect(str(path)) as con:
            for view in schema.VIEWS:
                con.execute(f"DROP VIEW {view.name}")
            con.execute("UPDATE store.meta SET value = '1' WHERE key = 'schema'")


def test_a_store_of_the_version_before_is_made_anew_for_whoever_asks(tmp_path: Path) -> None:
    put(tmp_path, grid({"kd": [0.5, 0.6]}))
    duck.sync(tmp_path)
    older(tmp_path)
    assert rows(tmp_path, "SELECT count(*) FROM pairwise") == [(0,)]
    assert rows(tmp_path, "SELECT count(*) FROM jobs") == [(2,)]
    assert list(tmp_path.rglob("*.damaged-*")) == []


def test_a_store_of_the_version_before_on_a_disk_that_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: object, **options: object) -> None:
        raise OSError(30, "Read-only file system")

    put(tmp_path, grid({"kd": [0.5, 0.6]}))
    duck.sync(tmp_path)
    older(tmp_path)
    before = duck.published_path(tmp_path).read_bytes()
    monkeypatch.setattr(duck, "writing", refuse)
    assert rows(tmp_path, "SELECT count(*) FROM jobs") == [(2,)]
    assert duck.published_path(tmp_path).read_bytes() == before
