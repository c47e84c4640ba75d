"""Folders of kdbench on a user's machine, found without importing anything heavy."""

from __future__ import annotations

import os
from pathlib import Path


def cache_root() -> Path:
    """``$KDBENCH_CACHE``, or ``kdbench`` in the user's cache folder."""
    named = os.environ.get("KDBENCH_CACHE")
    if named:
        return Path(named).expanduser()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "kdbench"


def default_tracking_uri(results: Path) -> str:
    """The MLflow database that is used where a suite names no server."""
    return f"sqlite:///{results.absolute() / 'mlflow.db'}"


def drop_in_folders() -> tuple[list[Path], bool]:
    """Folders (or single files) whose plugins are found without being named, and whether the user named them.

    ``$KDBENCH_PLUGINS`` is a list separated like ``$PATH``; an empty value means none. Without it the list is
    ``kdbench/plugins`` in the user's configuration folder, which need not exist.
    """
    named = os.environ.get("KDBENCH_PLUGINS")
    if named is not None:
        return [Path(part).expanduser() for part in named.split(os.pathsep) if part], True
    base = os.environ.get("XDG_CONFIG_HOME")
    return [(Path(base) if base else Path.home() / ".config") / "kdbench" / "plugins"], False
