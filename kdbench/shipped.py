"""The suites that come with kdbench, contributed like those of any other extension."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from kdbench import hookimpl

HERE = Path(__file__).parent
FOLDERS = (HERE / "suites", HERE.parent / "suites")
"""In an installed package, and in a checkout of the repository."""


@hookimpl
def kdbench_suites() -> Mapping[str, Path]:
    """By path below the folder without ending: ``quickstart``, ``paper/llm``."""
    folder = next((folder for folder in FOLDERS if folder.is_dir()), None)
    if folder is None:
        return {}
    return {path.relative_to(folder).with_suffix("").as_posix(): path for path in sorted(folder.rglob("*.yaml"))}
