"""rebuild, gc and cache: what goes, what stays, what is refused."""

from __future__ import annotations

import io
import json
import os
import tarfile
import time
from pathlib import Path

import pytest
from filelock import FileLock
from typer.testing import CliRunner, Result

from kdbench.cache import Cache
from kdbench.cli import make_app
from kdbench.schedule import attempts
from kdbench.store import duck, spool, sweep
from tests.helpers.outcomes import grid, put


def call(*arguments: object) -> Result:
    return CliRunner().invoke(make_app(), [str(argument) for argument in arguments])


def fill(root: Path, *names: str, size: int = 1000) -> list[Path]:
    cache = Cache(root)
    return [
        cache.get("teacher", {"task": n}, lambda f, n=n: (f / "w.bin").write_bytes(n.encode() * size)) for n in names
    ]


def age(path: Path, hours: float = 2) -> None:
    then = time.time() - hours * 3600
    for file in (path, *path.rglob("*")):
        os.utime(file, (then, then))


def test_rebuild_says_what_it_left_out(tmp_path: Path) -> None:
    good, bad = put(tmp_path, grid({"kd": [0.5, 0.6]}))
    (spool.job_folder(tmp_path, bad.id) / spool.OUTCOME).write_text("{")
    done = call("rebuild", "--results", tmp_path)
    assert done.exit_code == 0
    assert "1 outcomes" in done.stdout
    assert bad.id in done.stderr
    with duck.connect(tmp_path) as con:
        assert con.execute("SELECT id FROM jobs").fetchall() == [(good.id,)]


def test_gc_never_takes_outcomes(tmp_path: Path) -> None:
    results, cache = tmp_path / "results", tmp_path / "cache"
    (outcome,) = put(results, grid({"kd": [0.5]}))
    done_folder = spool.job_folder(results, outcome.id)
    (done_folder / f".{spool.OUTCOME}-abc").write_text("{")
    old, fresh = (spool.job_folder(results, name) for name in ("old", "fresh"))
    for folder in (old, fresh):
        (folder / "model").mkdir(parents=True)
        (folder / "model" / "checkpoint").write_bytes(b"x" * 5000)
    duck.sync(results)
    (results / "kdbench.duckdb.damaged-1").write_text("x")
    age(results)
    (fresh / "model" / "checkpoint").touch()
    before = {path for path in results.rglob("*") if path.is_file()}
    options = ("--results", results, "--cache", cache)
    planned = call("gc", "--dry-run", *options)
    assert {path for path in results.rglob("*") if path.is_file()} == before
    done = call("gc", *options)
    assert done.exit_code == 0, done.output
    assert done.stdout.splitlines()[:-1] == planned.stdout.splitlines()[:-1]
    gone = before - {path for path in results.rglob("*") if path.is_file()}
    assert {path.relative_to(results).as_posix() for path in gone} == {
        "jobs/old/model/checkpoint", f"jobs/{outcome.id}/.{spool.OUTCOME}-abc", "kdbench.duckdb.damaged-1",
    }  # fmt: skip
    assert not old.exists()
    assert spool.read_outcome(done_folder) is not None
    assert "freed" in done.stdout


def test_gc_bounds_the_cache_by_last_use(tmp_path: Path) -> None:
    root = tmp_path / "cache"
    first, second, third, broken = fill(root, "a", "b", "c", "d", size=100_000)
    for index, folder in enumerate((third, first, second)):
        age(folder, hours=5 - index)
    assert Cache(root).find("teacher", {"task": "c"}) == third  # its use is noted
    (broken / "w.bin").write_bytes(b"cut")
    half = root / "teacher" / ".abc-half"
    half.mkdir()
    age(half)
    done = call("gc", "--cache", root, "--results", tmp_path / "none", "--max-cache", "250KB")
    assert done.exit_code == 0, done.output
    assert not first.exists()
    assert not broken.exists()
    assert not half.exists()
    assert second.exists()
    assert third.exists()


def test_gc_leaves_running_jobs_alone(tmp_path: Path) -> None:
    for name in ("alive", "killed"):
        (tmp_path / "running" / name).mkdir(parents=True)
        (tmp_path / "running" / name / "log.txt").write_text("step 1\n")
    age(tmp_path)
    with FileLock(tmp_path / "running" / "alive.lock"):
        for dry in (("--dry-run",), ()):
            done = call("gc", *dry, "--results", tmp_path, "--cache", tmp_path / "cache")
            assert "killed" in done.stdout
            assert "alive" not in done.stdout
    assert (tmp_path / "running" / "alive" / "log.txt").exists()
    assert not (tmp_path / "running" / "killed").exists()
    assert call("logs", "al", "--results", tmp_path).stdout == "step 1\n"


def test_gc_leaves_alone_what_a_job_writes_that_has_outlived_its_run(tmp_path: Path) -> None:
    folder = tmp_path / "running" / "orphan"
    folder.mkdir(parents=True)
    (folder / "log.txt").write_text("step 1\n")
    (tmp_path / "running" / "orphan.lock").touch()  # as a killed coordinator leaves it
    age(tmp_path)
    with attempts.occupying(folder):
        call("gc", "--results", tmp_path, "--cache", tmp_path / "cache")
        assert (folder / "log.txt").exists()
    (remains,) = (one for one in sweep.of_results(tmp_path) if one.path == folder)
    with attempts.occupying(folder):
        assert not sweep.remove(remains), "it was taken between the look and the removal"
        assert (folder / "log.txt").exists()
    call("gc", "--results", tmp_path, "--cache", tmp_path / "cache")
    assert not folder.exists()


@pytest.mark.parametrize("option", [("--max-cache", "lots"), ("--older-than", "-1h")])
def test_gc_bad_options(tmp_path: Path, option: tuple[str, str]) -> None:
    done = call("gc", *option, "--cache", tmp_path, "--results", tmp_path)
    assert done.exit_code == 2
    assert "expected" in done.stderr or "above" in done.stderr


def test_cache_moves_between_machines(tmp_path: Path) -> None:
    here, there, file = tmp_path / "here", tmp_path / "there", tmp_path / "pack.tar"
    fill(here, "a", "b")
    assert "2 entries" in call("cache", "export", file, "--cache", here).stdout
    assert "2 entries taken over, 0 were there" in call("cache", "import", file, "--cache", there).stdout
    assert "0 entries taken over, 2 were there" in call("cache", "import", here, "--cache", there).stdout
    assert (Cache(there).path("teacher", {"task": "a"}) / "w.bin").read_bytes() == b"a" * 1000
    assert len(json.loads(call("cache", "list", "--cache", there, "--json").stdout)) == 2
    assert call("cache", "verify", "--cache", there).exit_code == 0


def test_damaged_and_lying_entries_are_left_out(tmp_path: Path) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    cut, renamed, good, extra = fill(here, "a", "b", "c", "d")
    (cut / "w.bin").write_bytes(b"other")
    renamed.rename(renamed.with_name("0123456789abcdef"))
    (extra / "more.py").write_text("evil")
    done = call("cache", "import", here, "--cache", there)
    assert done.exit_code == 1
    assert "1 entries taken over, 0 were there, 3 left out" in done.stdout
    assert [entry["folder"].name for entry in Cache(there).entries()] == [good.name]
    verified = call("cache", "verify", "--cache", here)
    assert verified.exit_code == 1
    assert "3 damaged" in verified.stdout


@pytest.mark.parametrize("name", ["../../evil", "/evil", "teacher/../../evil"])
def test_archives_cannot_write_elsewhere(tmp_path: Path, name: str) -> None:
    file = tmp_path / "deep" / "pack.tar"
    file.parent.mkdir()
    with tarfile.open(file, "w") as archive:
        info = tarfile.TarInfo(name)
        info.size = 4
        archive.addfile(info, io.BytesIO(b"evil"))
    done = call("cache", "import", file, "--cache", tmp_path / "cache")
    assert done.exit_code == 2
    assert not any(path.name == "evil" for path in tmp_path.rglob("*"))
    assert not Path("/evil").exists()


def test_what_is_no_pack(tmp_path: Path) -> None:
    (tmp_path / "x.tar").write_text("no archive")
    for source in (tmp_path / "x.tar", tmp_path / "none.tar", tmp_path):
        assert call("cache", "import", source, "--cache", tmp_path / "cache").exit_code == 2
    assert call("cache", "export", tmp_path / "y.tar", "--cache", tmp_path / "cache").exit_code == 2
    assert not (tmp_path / "y.tar").exists()
