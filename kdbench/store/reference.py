"""The results that come with kdbench: exports of real runs, a folder per track, under ``results/reference``.

They are read as anybody's results are. The first command that asks for them unpacks them into a results folder of
the cache, ``<cache>/reference-results/<digest of their files>``, and all others read that; other files, or another
form of stores, are another folder. It is made beside and appears by one rename under a lock, so that two commands at
once make it once, and one that is killed leaves none. ``kdbench gc`` removes those that are of earlier files.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock

from kdbench.cache import file_digest
from kdbench.errors import UsageError
from kdbench.job import OUTCOME_SCHEMA
from kdbench.paths import cache_root
from kdbench.spec import digest
from kdbench.store import export, schema, spool
from kdbench.store.index import LEARNED, Likeness, Taken

HERE = Path(__file__).parent.parent
FOLDERS = (HERE / "reference", HERE.parent / "results" / "reference")
"""In an installed package, and in a checkout of the repository."""
KIND = "reference-results"
"""Folder of the cache."""
MARK = "reference.json"
"""In a folder of unpacked results: it is whole, and when it was last read says the time of this file."""


@dataclass(frozen=True)
class Reference:
    """The reference results of this installation."""

    places: tuple[Path, ...]
    """Folders of the exports, by track."""
    results: Path
    """The results folder that they are unpacked into, whether or not they are."""

    @property
    def jobs(self) -> int:
        """How many there are, as the exports say."""
        names = (export.file_name("jobs", format) for format in export.FORMATS)
        listed = [export.read_manifest(place).files for place in self.places]
        return sum(files[name].rows for name in names for files in listed if name in files)

    @property
    def present(self) -> bool:
        """Whether they are unpacked."""
        return (self.results / MARK).is_file()

    def unpack(self) -> Path:
        """The results folder, made where it is not there.

        Raises ``UsageError`` for an export in which anything is wrong, and for a cache that cannot be written.
        """
        if not self.present:
            try:
                self._make()
            except OSError as error:
                place = str(error.filename or self.results)
                message = f"the reference results cannot be unpacked into the cache: {error.strerror or error}"
                raise UsageError(message, place=place, hint="set KDBENCH_CACHE") from error
        with contextlib.suppress(OSError):  # a cache that may only be read keeps no record of its use
            os.utime(self.results / MARK)
        return self.results

    def _make(self) -> None:
        from kdbench.store import exchange

        root = self.results.parent
        root.mkdir(parents=True, exist_ok=True)
        with FileLock(lock_of(self.results)):
            if self.present:  # another command was quicker
                return
            work = Path(tempfile.mkdtemp(prefix=f".{self.results.name}-", dir=root))
            try:
                exchange.unpack(self.places, work)
                spool.write_whole(work / MARK, json.dumps({"exports": [str(place) for place in self.places]}) + "\n")
                os.sync()  # once, in place of once for each of thousands of files
                shutil.rmtree(self.results, ignore_errors=True)  # without its mark it was none
                work.chmod(0o755)
                work.rename(self.results)
            finally:
                shutil.rmtree(work, ignore_errors=True)


def lock_of(results: Path) -> Path:
    """The lock under which a folder of unpacked results is made and removed."""
    return results.with_name(f"{results.name}.lock")


def places() -> list[Path]:
    """Folders of the exports that come with kdbench, one per track; none where there are none."""
    root = next((folder for folder in FOLDERS if folder.is_dir()), None)
    if root is None:
        return []
    return [path for path in sorted(root.iterdir()) if path.is_dir() and not path.name.startswith((".", "_"))]


def found(cache: Path | None = None) -> Reference:
    """The reference results. Raises ``UsageError`` where there are none, or a folder among them holds no export."""
    exports = places()
    if not exports:
        hint = "they are in results/reference of the repository; kdbench run SUITE makes your own"
        raise UsageError("no reference results come with this installation", place="--reference", hint=hint)
    for place in exports:
        if not export.is_export(place):
            hint = "kdbench export writes one; remove the folder, or export into it"
            raise UsageError("holds no export of results", place=str(place), hint=hint)
    root = cache if cache is not None else cache_root()
    return Reference(tuple(exports), root / KIND / _digest(exports))


def outdated(cache: Path) -> list[Path]:
    """Folders of unpacked results that are not those of this installation."""
    try:
        current = found(cache).results
    except UsageError:  # there are none that could be read
        current = None
    return [mark.parent for mark in sorted((cache / KIND).glob(f"[!.]*/{MARK}")) if mark.parent != current]


def _digest(exports: list[Path]) -> str:
    """Changes with every byte of the files, and with the form of what is made of them."""
    try:
        files = {f"{place.name}/{path.name}": file_digest(path) for place in exports for path in _files(place)}
    except OSError as error:
        raise UsageError(f"cannot be read: {error.strerror or error}", place=str(error.filename)) from error
    return digest([files, export.VERSION, schema.VERSION, OUTCOME_SCHEMA])


def _files(place: Path) -> Iterator[Path]:
    for path in sorted(place.iterdir()):
        if path.is_file() and not path.name.startswith("."):
            yield path


def times(track: str) -> list[tuple[Likeness, str, Taken]]:
    """Likeness, status and time of the reference results of a track; none where there are none.

    Read from the export itself, without unpacking anything. Raises ``UsageError`` for one that cannot be read.
    """
    place = next((place for place in places() if place.name == track and export.is_export(place)), None)
    if place is None:
        return []
    import duckdb  # so late because most plans have no use for it, and it takes a tenth of a second

    manifest = export.read_manifest(place)
    path = place / export.file_name("jobs", manifest.format)
    try:
        with duckdb.connect() as con:
            rows = con.execute(
                "SELECT coalesce((asked::JSON ->> '$.resources.gpus')::DOUBLE, 0) > 0 "
                "OR asked::JSON ->> '$.resources.gpu_memory' IS NOT NULL, task, scale, method, spec_digest, label, "
                "status, epoch(finished_at::TIMESTAMP) - epoch(started_at::TIMESTAMP) "
                f"FROM {schema.quoted(str(path))} WHERE status IN (SELECT unnest(?))",
                [list(LEARNED)],
            ).fetchall()
    except duckdb.Error as error:
        message = f"cannot be read: {str(error).splitlines()[0]}"
        raise UsageError(message, place=str(path), hint="restore the file, or export again") from error
    return [(Likeness(*like), status, Taken(seconds)) for *like, status, seconds in rows]
