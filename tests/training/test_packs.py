"""A pack holds the used entries as they are, and loading from it is loading from the cache."""

from __future__ import annotations

from pathlib import Path

import pytest

from kdbench.cache import Cache
from kdbench.errors import UsageError
from kdbench.training import packs


def write(folder: Path) -> None:
    (folder / "weights").write_bytes(b"abc")


def never(folder: Path) -> None:
    raise AssertionError("made again")


def test_used_entries_are_copied_and_found(tmp_path: Path) -> None:
    Cache(tmp_path / "cache").get("teacher", "unused", write)
    cache = packs.RecordingCache(tmp_path / "cache")
    for kind, key in (("teacher", {"a": 1}), ("teacher", {"a": 1}), ("outputs", 2)):
        cache.get(kind, key, write)
    copied = packs.copy(cache, tmp_path / "pack", ["teacher"], 0)
    assert [(folder.parent.name, size) for folder, size, _ in copied] == [("teacher", 3)]
    fresh = Cache(tmp_path / "other", [tmp_path / "pack"])
    assert fresh.get("teacher", {"a": 1}, never).parent.parent == tmp_path / "pack"
    again = packs.RecordingCache(tmp_path / "other", [tmp_path / "pack"])
    again.get("teacher", {"a": 1}, never)
    assert packs.copy(again, tmp_path / "pack", ["teacher"], 0) == copied  # from the pack into itself


def test_what_is_made_fast_may_stay_out(tmp_path: Path) -> None:
    cache = packs.RecordingCache(tmp_path / "cache")
    cache.get("teacher", 1, write)
    assert packs.copy(cache, tmp_path / "pack", ["teacher"], 20) == []
    assert not (tmp_path / "pack").exists()


def test_unknown_tracks_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no track 'visoin'"):
        packs.main(["visoin", str(tmp_path)])
