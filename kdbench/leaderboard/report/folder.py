"""The folder of a site: what may be replaced in it, and the change from an old site to a new one."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path, PurePosixPath
from types import TracebackType

from filelock import FileLock, Timeout

from kdbench import __version__
from kdbench.errors import UsageError

MANIFEST = ".kdbench-site.json"
"""In the site's folder: every file of it, relative to it."""
LOCK = ".kdbench-site.lock"
STAGING = ".kdbench-site.new"
"""Folder in it where the new site is made."""
_OWN = frozenset({MANIFEST, LOCK, STAGING})


class SiteFolder:
    """A context in which a site is written: ``write`` files, or put them under ``staging``, then ``publish``.

    Without ``publish``, and where anything raises, the old site stays as it is.
    """

    def __init__(self, out: Path) -> None:
        """Raises ``UsageError`` where ``out`` is there and no folder of a site, nor an empty one."""
        self.out = out
        self.staging = out / STAGING
        self.before = _files_of(out)
        self._lock = FileLock(out / LOCK, timeout=0)

    def __enter__(self) -> SiteFolder:
        try:
            self.out.mkdir(parents=True, exist_ok=True)
            self._lock.acquire()
            shutil.rmtree(self.staging, ignore_errors=True)  # of a build that was killed
            self.staging.mkdir()
        except Timeout:
            raise UsageError("is being written by another kdbench report", place=str(self.out)) from None
        except OSError as error:
            raise UsageError(f"cannot be written: {error.strerror or error}", place=str(self.out)) from error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        shutil.rmtree(self.staging, ignore_errors=True)
        self._lock.release()
        (self.out / LOCK).unlink(missing_ok=True)

    def write(self, path: str, text: str) -> None:
        """A file of the new site, in UTF-8."""
        target = self.staging / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text, encoding="utf-8")

    def publish(self) -> list[str]:
        """Put the new site in the place of the old one; returns its files.

        Raises ``UsageError`` before anything is changed where a file that is no part of a site would be replaced.
        """
        files = sorted(path.relative_to(self.staging).as_posix() for path in self.staging.rglob("*") if path.is_file())
        foreign = [file for file in files if file not in self.before and os.path.lexists(self.out / file)]
        if foreign:
            hint = "move it away, or give --out another folder"
            raise UsageError("was not written by kdbench report", place=str(self.out / foreign[0]), hint=hint)
        self._list([*self.before, *files])  # first: whatever is interrupted now is known as the site's own
        for file in files:
            target = self.out / file
            target.parent.mkdir(parents=True, exist_ok=True)
            os.replace(self.staging / file, target)
        gone = set(self.before) - set(files)
        for file in gone:
            (self.out / file).unlink(missing_ok=True)
        for folder in sorted({parent for file in gone for parent in PurePosixPath(file).parents}, reverse=True):
            if folder.name and not any((self.out / folder).iterdir()):
                (self.out / folder).rmdir()
        self._list(files)
        return files

    def _list(self, files: list[str]) -> None:
        content = {"kdbench": __version__, "files": sorted(set(files))}
        new = self.staging / MANIFEST
        new.write_text(json.dumps(content, indent=0) + "\n", encoding="utf-8")
        os.replace(new, self.out / MANIFEST)


def _files_of(out: Path) -> list[str]:
    """Files of the site in a folder; none for one that is empty or missing. Raises ``UsageError`` for any other."""
    hint = "give --out a folder of its own; one that is new or empty will do"
    try:
        entries = {entry.name for entry in out.iterdir()}
    except FileNotFoundError:
        return []
    except OSError as error:
        raise UsageError(f"is no folder that can be read: {error.strerror}", place=str(out), hint=hint) from error
    if MANIFEST not in entries:
        if entries <= _OWN:
            return []
        raise UsageError("holds files, and is no site that kdbench wrote", place=str(out), hint=hint)
    try:
        files = json.loads((out / MANIFEST).read_text(encoding="utf-8"))["files"]
        paths = [PurePosixPath(file) for file in files]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(
            "is damaged, so that nobody knows what is the site's", place=str(out / MANIFEST), hint=hint
        ) from error
    if any(path.is_absolute() or ".." in path.parts or not path.parts for path in paths):
        raise UsageError("names files outside of the site", place=str(out / MANIFEST), hint=hint)
    return [str(path) for path in paths]
