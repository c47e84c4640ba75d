"""The cache: whole entries or none, made once, damage found and mended."""

from __future__ import annotations

import json
import multiprocessing
import time
from pathlib import Path

import pytest

from kdbench.cache import Cache
from kdbench.errors import CacheError
from kdbench.paths import cache_root


def write(text: str):
    def make(folder: Path) -> None:
        (folder / "weights.bin").write_text(text)

    return make


def fail(folder: Path) -> None:
    (folder / "weights.bin").write_text("half")
    raise RuntimeError("training failed")


def test_an_entry_is_made_once_and_found_by_content_of_its_key(tmp_path):
    cache = Cache(tmp_path)
    first = cache.get("teacher", {"arch": "rn", "seed": 0}, write("a"))
    again = Cache(tmp_path).get("teacher", {"seed": 0, "arch": "rn"}, fail)
    other = cache.get("teacher", {"arch": "rn", "seed": 1}, write("b"))
    assert again == first != other
    assert (first / "weights.bin").read_text() == "a"
    assert json.loads((first / "entry.json").read_text())["key"] == {"arch": "rn", "seed": 0}


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: (folder / "weights.bin").write_bytes((folder / "weights.bin").read_bytes()[:50]),
        lambda folder: (folder / "weights.bin").write_text("y" * 100),
        lambda folder: (folder / "weights.bin").unlink(),
        lambda folder: (folder / "entry.json").write_text("{"),
        lambda folder: (folder / "entry.json").unlink(),
    ],
    ids=["cut in half", "other content", "file gone", "entry cut", "entry gone"],
)
def test_a_damaged_entry_is_made_anew(tmp_path, damage, caplog):
    folder = Cache(tmp_path).get("teacher", "key", write("x" * 100))
    damage(folder)
    cache = Cache(tmp_path)
    assert cache.find("teacher", "key") is None
    assert "will be made anew" in caplog.text
    assert cache.get("teacher", "key", write("x" * 100)) == folder
    assert (folder / "weights.bin").read_text() == "x" * 100


def test_a_failing_maker_leaves_nothing_and_its_error_is_seen(tmp_path):
    cache = Cache(tmp_path)
    with pytest.raises(RuntimeError, match="training failed"):
        cache.get("teacher", "key", fail)
    assert cache.find("teacher", "key") is None
    assert [path.suffix for path in (tmp_path / "teacher").iterdir()] == [".lock"]
    with pytest.raises(CacheError, match="wrote no file"):
        cache.get("teacher", "key", lambda folder: None)


def test_packs_are_read_and_never_written(tmp_path):
    packed = Cache(tmp_path / "pack").get("teacher", "key", write("shipped"))
    cache = Cache(tmp_path / "cache", packs=[tmp_path / "pack"])
    assert cache.get("teacher", "key", fail) == packed
    assert not (tmp_path / "cache").exists()
    (packed / "weights.bin").write_text("changed")
    mended = Cache(tmp_path / "cache", packs=[tmp_path / "pack"]).get("teacher", "key", write("shipped"))
    assert mended.is_relative_to(tmp_path / "cache")


def test_an_unwritable_cache_is_one_clear_error(tmp_path):
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(CacheError, match="KDBENCH_CACHE"):
        Cache(tmp_path / "file").get("teacher", "key", write("a"))


def _make_slowly(root: Path, made: Path) -> None:
    def make(folder: Path) -> None:
        with made.open("a") as file:
            file.write("made\n")
        time.sleep(0.2)
        (folder / "weights.bin").write_text("a")

    Cache(root).get("teacher", "key", make)


def test_concurrent_processes_make_an_entry_once(tmp_path):
    context = multiprocessing.get_context("fork")
    made = tmp_path / "made"
    processes = [context.Process(target=_make_slowly, args=(tmp_path / "cache", made)) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(30)
    assert [process.exitcode for process in processes] == [0] * 4
    assert made.read_text() == "made\n"


def test_entries_lists_what_is_there(tmp_path):
    cache = Cache(tmp_path)
    cache.get("teacher", {"seed": 0}, write("abc"))
    (entry,) = cache.entries()
    assert (entry["kind"], entry["key"], entry["bytes"]) == ("teacher", {"seed": 0}, 3)


def test_the_root_follows_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("KDBENCH_CACHE", str(tmp_path / "mine"))
    assert cache_root() == tmp_path / "mine"
    monkeypatch.delenv("KDBENCH_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_root() == tmp_path / "kdbench"
