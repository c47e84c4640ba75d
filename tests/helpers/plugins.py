"""Files of plugins for tests."""

from __future__ import annotations

import os
import textwrap
from pathlib import Path

METHOD = '''"""{slug}: a method of a test."""

from kdbench import Baseline, Compare, Field, Paper, Params, hookimpl

CARD = Baseline(slug="{slug}", title="A method called {slug}", track="{track}", tasks=["*"], tags=["test"])


class MethodParams(Params):
    weight: float = Field(0.5, ge=0, le=1, description="of the divergence")


@hookimpl
def train(task, params):
    return task.student()
'''


def write(path: Path, text: str, *, old: bool = True) -> Path:
    """Write a file; ``old`` makes it look as if it was written an hour ago, as files of people usually are."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(textwrap.dedent(text), encoding="utf-8")
    if old:
        stamp = path.stat().st_mtime - 3600
        os.utime(path, (stamp, stamp))
    return path


def write_method(folder: Path, slug: str, track: str = "vision", **changes: str) -> Path:
    """A sound method ``track/slug`` in ``folder/slug.py``; ``changes`` replaces each ``old`` text by ``new``."""
    text = METHOD.format(slug=slug, track=track)
    if changes:
        assert changes["old"] in text
        text = text.replace(changes["old"], changes["new"])
    return write(folder / f"{slug}.py", text)


def install(folder: Path, name: str, entry_points: str, files: dict[str, str] | None = None) -> Path:
    """What installing a distribution leaves in a folder of ``sys.path``: its metadata and its modules."""
    info = folder / f"{name}-1.2.dist-info"
    write(info / "METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.2\n")
    write(info / "entry_points.txt", entry_points)
    for path, text in (files or {}).items():
        write(folder / path, text)
    return folder
