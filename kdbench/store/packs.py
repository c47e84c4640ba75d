"""Cache entries on their way between machines: archives and folders of the form that the cache has.

An entry is taken over only if its folder is the digest of its key and every file has the size and SHA-256 that
``entry.json`` states. Archives are plain tar files; nothing in them is ever executed or unpickled.
"""

from __future__ import annotations

import json
import os
import shutil
import tarfile
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from kdbench.cache import Cache, file_digest
from kdbench.errors import Problem, UsageError
from kdbench.spec import digest


@dataclass(frozen=True)
class Entry:
    """An entry of the cache or of a pack."""

    kind: str
    name: str
    """Digest of its key."""
    folder: Path
    size: int
    """Bytes."""
    key: Any


def entries(root: Path) -> Iterator[tuple[Path, Entry | None]]:
    """Folders with an ``entry.json`` under ``root``, each with what it says; None where that cannot be read."""
    for path in sorted(root.glob("[!.]*/[!.]*/entry.json")):
        try:
            content = json.loads(path.read_bytes())
            size = sum(int(file["size"]) for file in content["files"].values())
            entry = Entry(str(content["kind"]), path.parent.name, path.parent, size, content["key"])
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            yield path.parent, None
        else:
            yield path.parent, entry


def problem_of(folder: Path, *, thorough: bool = True) -> str | None:
    """Why an entry may not be used, or None. ``thorough`` also hashes files of any size, and looks for foreign ones."""
    reason = Cache.damage(folder)
    if reason is not None or not thorough:
        return reason
    entry = json.loads((folder / "entry.json").read_bytes())
    if entry["kind"] != folder.parent.name or digest(entry["key"]) != folder.name:
        return "its folder is not the digest of its key"
    names = {str(path.relative_to(folder)) for path in folder.rglob("*") if not path.is_dir()}
    foreign = names - set(entry["files"]) - {"entry.json"}
    if foreign:
        return f"{sorted(foreign)[0]} is not among its files"
    for name, expected in entry["files"].items():
        path = folder / name
        if path.is_symlink() or not path.resolve().is_relative_to(folder.resolve()):
            return f"{name} leads out of the entry"
        if file_digest(path) != expected["sha256"]:
            return f"{name} does not have the content that was written"
    return None


def export(root: Path, target: Path, kinds: Sequence[str] = ()) -> tuple[int, int]:
    """Write the whole entries of a cache (of some kinds) into a tar file; returns their number and bytes.

    The file appears when it is complete. Raises ``UsageError`` where there is nothing to export or a kind is unknown.
    """
    chosen = [entry for _, entry in entries(root) if entry and (not kinds or entry.kind in kinds)]
    chosen = [entry for entry in chosen if problem_of(entry.folder) is None]
    if not chosen:
        present = ", ".join(sorted({entry.kind for _, entry in entries(root) if entry})) or "none"
        raise UsageError("nothing to export", place=str(root), hint=f"kinds that are there: {present}")
    try:
        handle, name = tempfile.mkstemp(prefix=f".{target.name}-", dir=target.parent)
    except OSError as error:
        raise UsageError(f"cannot be written: {error.strerror or error}", place=str(target)) from error
    try:
        with os.fdopen(handle, "wb") as file, tarfile.open(fileobj=file, mode="w") as archive:
            for entry in chosen:
                archive.add(entry.folder, arcname=f"{entry.kind}/{entry.name}")
        os.chmod(name, 0o644)
        os.replace(name, target)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    return len(chosen), sum(entry.size for entry in chosen)


def take_over(source: Path, cache: Cache, problems: list[Problem]) -> tuple[int, int]:
    """Copy the entries of a tar file or folder into the cache; returns how many are new and how many were there.

    Entries that are not whole, or not what they say, are added to ``problems`` and left out. Raises ``UsageError``
    for a source that is no pack at all.
    """
    new = known = 0
    with _opened(source) as root:
        found = list(entries(root))
        if not found:
            raise UsageError("holds no cache entries", place=str(source), hint="kdbench cache export makes such a file")
        for folder, entry in found:
            reason = "entry.json cannot be read" if entry is None else problem_of(folder)
            if entry is None or reason is not None:
                problems.append(Problem(f"{source}: {folder.parent.name}/{folder.name}", f"left out: {reason}"))
                continue
            if cache.find(entry.kind, entry.key) is not None:
                known += 1
                continue
            cache.get(entry.kind, entry.key, partial(_copy, folder))
            new += 1
    return new, known


def _copy(source: Path, target: Path) -> None:
    shutil.copytree(source, target, dirs_exist_ok=True, ignore=shutil.ignore_patterns("entry.json"))


@contextmanager
def _opened(source: Path) -> Iterator[Path]:
    if source.is_dir():
        yield source
        return
    with tempfile.TemporaryDirectory(prefix="kdbench-pack-") as folder:
        try:
            with tarfile.open(source, "r:*") as archive:
                archive.extractall(folder, filter="data")
        except FileNotFoundError as error:
            raise UsageError("does not exist", place=str(source)) from error
        except (OSError, tarfile.TarError, EOFError) as error:
            raise UsageError(f"is not a pack: {error}", place=str(source)) from error
        yield Path(folder)
