"""Reference results: unpacked once for each state of their files, whole or not at all, and read as any results."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from kdbench.errors import UsageError
from kdbench.leaderboard.boards import load_boards
from kdbench.leaderboard.records import records
from kdbench.store import duck, exchange, export, membership, reference, spool, sweep
from kdbench.store.index import Likeness, Taken
from tests.helpers.outcomes import grid, make_job, make_outcome
from tests.helpers.reference import come_with, ship

CURVE = [{"step": 1, "loss": 2.0}, {"step": 2, "loss": 1.5}]


@pytest.fixture
def shipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Reference results of two tracks: six jobs with a curve, one of them failed."""
    folder = come_with(monkeypatch, tmp_path / "reference")
    ship(folder, "vision", grid({"kd": [0.5, 0.6], "no_kd": [0.4, None]}), curve=CURVE)
    ship(folder, "llm", grid({"sft": [0.3, 0.2]}, task="llm/toy"), suite="other", curve=CURVE)
    return folder


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def boards(results: Path) -> list[dict[str, object]]:
    return duck.query(results, lambda con: records(load_boards(con)))


def kept(cache: Path) -> list[str]:
    """What is in the cache but for locks."""
    folder = cache / reference.KIND
    return sorted(path.name for path in folder.iterdir() if path.suffix != ".lock") if folder.exists() else []


def test_they_are_results_like_any_others(shipped: Path, cache: Path, tmp_path: Path) -> None:
    found = reference.found(cache)
    assert ([place.name for place in found.places], found.jobs, found.present) == (["llm", "vision"], 6, False)
    results = found.unpack()
    assert results == found.results
    assert results.parent == cache / reference.KIND
    assert found.present
    expected = tmp_path / "together"
    for track in ("vision", "llm"):
        exchange.take_over(shipped / track, expected)
    assert boards(results) == boards(expected)
    assert len(spool.statuses(results)) == 6
    assert {members.suite for members in membership.every(results)} == {"toy", "other"}
    for folder in spool.iter_folders(results):
        assert spool.read_curve(folder) == CURVE
        outcome = spool.read_outcome(folder)
        assert outcome is not None
        assert outcome.provenance["imported"]["from"] == str(shipped / outcome.job.track)


def test_they_are_unpacked_once(shipped: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    results = reference.found(cache).unpack()
    before = spool.stamps(results), duck.state_of(duck.published_path(results))
    monkeypatch.setattr(exchange, "unpack", lambda *_: pytest.fail("unpacked again"))
    assert reference.found(cache).unpack() == results
    boards(results)
    assert (spool.stamps(results), duck.state_of(duck.published_path(results))) == before


def test_other_files_are_other_results_and_gc_removes_what_was_unpacked_of_earlier_ones(
    shipped: Path, cache: Path
) -> None:
    first = reference.found(cache).unpack()
    ship(shipped, "llm", grid({"kd_fkl": [0.1]}, task="llm/toy"), suite="other")
    second = reference.found(cache).unpack()
    assert second != first
    assert len(spool.statuses(second)) == 7
    assert [path.name for path in reference.outdated(cache)] == [first.name]

    assert not list(sweep.of_cache(cache, 10**9, quiet=60)), "another checkout may still read them"
    past = time.time() - 120
    for results in (first, second):
        os.utime(results / reference.MARK, (past, past))
    (remains,) = sweep.of_cache(cache, 10**9, quiet=60)
    assert (remains.path, remains.reason) == (first, "earlier reference results")
    assert remains.size > 10_000
    assert sweep.remove(remains)
    assert kept(cache) == [second.name]

    reference.found(cache).unpack()
    assert (second / reference.MARK).stat().st_mtime > past + 60, "it was read just now"


def test_what_an_installation_without_any_has_unpacked_is_outdated(
    shipped: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    results = reference.found(cache).unpack()
    come_with(monkeypatch, tmp_path / "nowhere")
    assert reference.outdated(cache) == [results]
    assert reference.outdated(tmp_path / "no cache") == []


def test_a_job_of_two_exports_counts_once_the_better_one_if_one_failed(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = come_with(monkeypatch, tmp_path / "reference")
    job, same = make_job("kd", 0), make_job("kd", 1)
    ship(folder, "a", [make_outcome(job, status="failed"), make_outcome(same, 0.5)], curve=CURVE)
    ship(folder, "b", [make_outcome(job, 0.7), make_outcome(same, status="failed")])
    results = reference.found(cache).unpack()
    assert spool.statuses(results) == {job.id: "ok", same.id: "ok"}
    assert spool.read_curve(spool.job_folder(results, job.id)) == [], "that of the attempt that failed"
    assert spool.read_curve(spool.job_folder(results, same.id)) == CURVE


SCRIPT = """
import sys
from pathlib import Path
from kdbench.store import exchange, reference
reference.FOLDERS = (Path(sys.argv[1]),)
real = exchange.unpack
def noted(*arguments):
    with open(sys.argv[3], "a") as file:
        file.write("unpacked\\n")
    return real(*arguments)
exchange.unpack = noted
print(reference.found(Path(sys.argv[2])).unpack())
"""


def test_commands_at_once_unpack_them_once(shipped: Path, cache: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-c", SCRIPT, str(shipped), str(cache), str(tmp_path / "notes")]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    printed = {process.communicate(timeout=120)[0] for process in running}
    assert [process.returncode for process in running] == [0, 0, 0]
    assert printed == {f"{reference.found(cache).results}\n"}
    assert (tmp_path / "notes").read_text() == "unpacked\n"
    assert len(spool.statuses(reference.found(cache).results)) == 6


def test_what_was_interrupted_leaves_nothing_that_counts(
    shipped: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = duck.sync

    def stop(*_: object, **__: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(duck, "sync", stop)
    with pytest.raises(KeyboardInterrupt):
        reference.found(cache).unpack()
    assert kept(cache) == []
    monkeypatch.setattr(duck, "sync", real)
    found = reference.found(cache)
    found.results.mkdir()  # without its mark it is of something else, or of a version that did it otherwise
    (found.results / "left.txt").write_text("x")
    assert not found.present
    assert len(spool.statuses(found.unpack())) == 6
    assert not (found.results / "left.txt").exists()


def test_a_half_made_folder_of_a_command_that_was_killed_goes_with_gc(shipped: Path, cache: Path) -> None:
    results = reference.found(cache).unpack()
    work = results.with_name(f".{results.name}-abc")
    work.mkdir()
    assert not list(sweep.of_cache(cache, 10**9, quiet=60)), "someone may be at it"
    past = time.time() - 120
    os.utime(work, (past, past))
    assert [(remains.path, remains.reason) for remains in sweep.of_cache(cache, 10**9, quiet=60)] == [
        (work, "half-made cache entry")
    ]


def problem(cache: Path) -> tuple[str, str]:
    """Place and text of the one problem that the reference results have, which leaves nothing in the cache."""
    with pytest.raises(UsageError) as caught:
        reference.found(cache).unpack()
    assert kept(cache) == []
    (found,) = caught.value.problems
    return found.place, str(found)


@pytest.mark.parametrize("name", ["metrics.parquet", "curves.parquet", "suites.parquet"])
def test_a_damaged_file_is_named(shipped: Path, cache: Path, name: str) -> None:
    path = shipped / "vision" / name
    path.write_bytes(path.read_bytes()[:-9] + b"123456789")
    place, text = problem(cache)
    assert place == str(path)
    assert "is not the file that was exported: damaged, or edited" in text


def test_a_missing_file_is_named(shipped: Path, cache: Path) -> None:
    (shipped / "llm" / "jobs.parquet").unlink()
    assert "jobs.parquet: is missing" in problem(cache)[1]


@pytest.mark.parametrize(
    ("field", "text"),
    [("version", "form of exports"), ("schema_version", "form of tables"), ("outcome_schema", "form of outcomes")],
)
def test_an_export_of_a_newer_kdbench_says_so(shipped: Path, cache: Path, field: str, text: str) -> None:
    path = shipped / "llm" / export.MANIFEST
    manifest = json.loads(path.read_text()) | {field: 99, "kdbench": "9.9"}
    path.write_text(json.dumps(manifest))
    place, said = problem(cache)
    assert place == str(path)
    assert re.search(f"kdbench 9.9 with version 99 of the {text}.*update kdbench", said)


def test_an_export_that_was_interrupted_says_so(shipped: Path, cache: Path) -> None:
    path = shipped / "llm" / export.MANIFEST
    path.write_text(json.dumps(json.loads(path.read_text()) | {"complete": False}))
    assert problem(cache) == (
        str(shipped / "llm"),
        f"{shipped / 'llm'}: is an export that was interrupted (export again)",
    )


def test_an_empty_folder_among_them_is_an_error(shipped: Path, cache: Path) -> None:
    (shipped / "policy").mkdir()
    (shipped / ".partial").mkdir()
    place, text = problem(cache)
    assert place == str(shipped / "policy")
    assert "holds no export" in text


@pytest.mark.parametrize("exists", [False, True])
def test_none_are_there(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, exists: bool) -> None:
    folder = come_with(monkeypatch, tmp_path / "reference")
    if exists:
        folder.mkdir()
        (folder / "README.md").write_text("to come")
    place, text = problem(cache)
    assert place == "--reference"
    assert "no reference results come with this installation" in text


def test_a_cache_that_cannot_be_written_is_named(shipped: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(UsageError, match="cannot be unpacked into the cache: .*KDBENCH_CACHE"):
        reference.found(tmp_path / "file" / "cache").unpack()


# --- how long jobs took -----------------------------------------------------------------------------------------------


def test_times_are_read_without_unpacking(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = come_with(monkeypatch, tmp_path / "reference")
    on_gpu = make_job("kd", 0)
    on_gpu = on_gpu.model_copy(update={"resources": on_gpu.resources.model_copy(update={"gpus": 0.5})})
    by_memory = make_job("kd", 1)
    by_memory = by_memory.model_copy(update={"resources": by_memory.resources.model_copy(update={"gpu_memory": 2**30})})
    plain = make_job("kd", 2)
    ended = [make_outcome(job, 0.5, minutes=job.seed + 1) for job in (on_gpu, by_memory, plain)]
    ship(folder, "vision", [*ended, make_outcome(make_job("kd", 3), status="failed")])
    found = sorted(reference.times("vision"), key=lambda row: row[2].seconds)
    assert [(like.on_gpu, status, taken) for like, status, taken in found] == [
        (True, "ok", Taken(60)),
        (True, "ok", Taken(120)),
        (False, "ok", Taken(180)),
    ]
    assert found[2][0] == Likeness.of(plain)
    assert not cache.exists()
    assert reference.times("llm") == []
    (folder / "vision" / "jobs.parquet").write_bytes(b"PAR1")
    with pytest.raises(UsageError, match=r"jobs\.parquet: cannot be read"):
        reference.times("vision")
