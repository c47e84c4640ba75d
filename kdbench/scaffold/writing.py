"""Writing several new files: all of them or none, and never over what is there."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from kdbench.errors import Problem, UsageError


def write_new(files: Mapping[Path, str]) -> None:
    """Write ``files``, making folders where they are missing.

    Raises ``UsageError`` where one is there already, or cannot be written; then none of them is left.
    """
    there = [path for path in files if os.path.lexists(path)]
    if there:
        hint = "choose another name or folder, or move it away"
        raise UsageError([Problem(str(path), "it is there already, and is never overwritten", hint) for path in there])
    written: list[Path] = []
    made: list[Path] = []
    path = Path()
    try:
        for path, text in files.items():
            made += _make_folder(path.parent)
            with path.open("x", encoding="utf-8") as file:
                written.append(path)
                file.write(text)
    except OSError as error:
        with suppress(OSError):  # what cannot be removed is no reason to hide why it could not be written
            for done in reversed(written):
                done.unlink()
            for folder in reversed(made):
                folder.rmdir()
        message = f"it cannot be written: {error.strerror or error}"
        raise UsageError(message, place=str(path), hint="choose another folder") from error


def _make_folder(folder: Path) -> list[Path]:
    """Make a folder and those above it; which ones were made, the outermost first."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    for path in reversed(missing):
        path.mkdir()
    return missing[::-1]
