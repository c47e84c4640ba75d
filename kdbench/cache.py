"""Teachers and their outputs, made once.

An entry is a folder ``<root>/<kind>/<digest of its key>`` with the files that a maker wrote and ``entry.json``,
which holds the whole key and the size and SHA-256 of every file. Entries are made in a temporary folder under a
file lock and appear by one rename, so that concurrent workers and a power cut leave either a whole entry or none.
Packs are read-only folders of the same form that ship with a track.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from filelock import FileLock

from kdbench.errors import CacheError
from kdbench.paths import cache_root
from kdbench.spec import canonical_json, digest

log = logging.getLogger(__name__)

HASHED_UP_TO = 64 << 20
"""Files up to this size have their SHA-256 checked whenever they are opened, larger ones their size alone."""


def file_digest(path: Path) -> str:
    """SHA-256 of a file's content, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class Cache:
    """Content-addressed entries, safe under concurrent workers."""

    def __init__(self, root: Path | None = None, packs: Sequence[Path] = ()) -> None:
        self.root = root if root is not None else cache_root()
        self.packs = tuple(packs)
        self._trusted: set[Path] = set()

    def path(self, kind: str, key: Any) -> Path:
        """Where an entry is or would be; ``key`` is any JSON value."""
        return self.root / kind / digest(key)

    def find(self, kind: str, key: Any) -> Path | None:
        """Folder of a whole entry in the cache or in a pack, or None. Damaged entries are not whole."""
        name = digest(key)
        for root in (self.root, *self.packs):
            folder = root / kind / name
            if folder in self._trusted:
                return folder
            if not folder.is_dir():
                continue
            reason = self.damage(folder)
            if reason is None:
                self._trusted.add(folder)
                if root == self.root:
                    with contextlib.suppress(OSError):  # a cache that may only be read keeps no record of its use
                        os.utime(folder / "entry.json")
                return folder
            log.warning("cache entry %s is damaged (%s) and will be made anew", folder, reason)
        return None

    def get(self, kind: str, key: Any, make: Callable[[Path], None]) -> Path:
        """Folder of the entry, made by ``make(folder)`` if it is not there.

        One process makes it, others wait for it. What ``make`` raises goes to the caller and leaves no entry.
        """
        found = self.find(kind, key)
        if found is not None:
            return found
        folder = self.path(kind, key)
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            lock = FileLock(folder.with_suffix(".lock"))
            lock.acquire()
        except OSError as error:
            raise CacheError(f"cannot write to the cache {self.root}: {error} (set KDBENCH_CACHE)") from error
        try:
            found = self.find(kind, key)
            if found is not None:
                return found
            work = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
            try:
                started = time.perf_counter()
                make(work)
                self._seal(work, kind, key, time.perf_counter() - started)
                if folder.exists():
                    shutil.rmtree(folder)
                work.rename(folder)
            finally:
                shutil.rmtree(work, ignore_errors=True)
        finally:
            lock.release()
        self._trusted.add(folder)
        return folder

    def _seal(self, folder: Path, kind: str, key: Any, seconds: float) -> None:
        files = {
            str(path.relative_to(folder)): {"size": path.stat().st_size, "sha256": file_digest(path)}
            for path in sorted(folder.rglob("*"))
            if path.is_file()
        }
        if not files:
            raise CacheError(f"the maker of a {kind!r} entry wrote no file")
        entry = {"kind": kind, "key": json.loads(canonical_json(key)), "files": files, "seconds": round(seconds, 3)}
        (folder / "entry.json").write_text(json.dumps(entry, indent=1) + "\n")

    @staticmethod
    def damage(folder: Path) -> str | None:
        """What is wrong with an entry, or None: missing or cut files, other content than was written."""
        try:
            entry = json.loads((folder / "entry.json").read_text())
            for name, expected in entry["files"].items():
                path = folder / name
                if not path.is_file():
                    return f"{name} is missing"
                size = path.stat().st_size
                if size != expected["size"]:
                    return f"{name} has {size} bytes instead of {expected['size']}"
                if size <= HASHED_UP_TO and file_digest(path) != expected["sha256"]:
                    return f"{name} does not have the content that was written"
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            return f"entry.json cannot be read: {error}"
        return None

    def entries(self) -> Iterator[dict[str, Any]]:
        """Every entry of the cache (not of packs): kind, key, folder, bytes, seconds it took, last use."""
        for path in sorted(self.root.glob("*/*/entry.json")):
            try:
                entry = json.loads(path.read_text())
                size = sum(int(file["size"]) for file in entry["files"].values())
            except (OSError, ValueError, KeyError, TypeError) as error:
                log.warning("skipping damaged cache entry %s: %s", path.parent, error)
                continue
            yield {
                "kind": entry["kind"],
                "key": entry["key"],
                "folder": path.parent,
                "bytes": size,
                "seconds": entry.get("seconds", 0.0),
                "used": path.stat().st_mtime,
            }
