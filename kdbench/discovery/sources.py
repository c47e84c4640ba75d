"""Where plugins come from: the files that are looked at, in order of precedence, without importing any."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from kdbench.discovery.index import EntryPoint, Index
from kdbench.discovery.records import Broken
from kdbench.errors import UsageError, did_you_mean
from kdbench.paths import drop_in_folders

BUILT_IN = "kdbench_methods"


@dataclass(frozen=True)
class Candidate:
    """A file that may hold a plugin."""

    path: Path
    """Absolute, links resolved."""
    module: str | None
    """Importable name, where there is one."""
    source: str
    dedicated: bool
    """Whether the file is where only plugins belong, so that a file without a card is worth a word."""


@dataclass(frozen=True)
class ObjectCandidate:
    """An extension that an entry point names as ``module:attribute``; found out only by importing it."""

    value: str
    source: str


Found = Candidate | ObjectCandidate | Broken


def candidates(index: Index, plugins: Sequence[Path] = ()) -> Iterator[Found]:
    """Everything that may be a plugin: built-in, of installed packages, dropped in, and given by ``--plugin``.

    Raises ``UsageError`` where an entry of ``plugins`` is no Python file or folder.
    """
    yield from _built_in()
    for point in index.entry_points():
        if isinstance(point, Broken):
            yield point
        else:
            yield from _entry_point(point)
    yield from _drop_in()
    yield from _given(plugins)


def _built_in() -> Iterator[Found]:
    spec = find_spec(BUILT_IN)
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        yield from _package(Path(folder), BUILT_IN, "built-in", dedicated=True)


def _package(folder: Path, name: str, source: str, *, dedicated: bool) -> Iterator[Found]:
    """Modules of a package and of those below it; ``__init__`` counts only where helpers may be, too."""
    for path in _python_files(folder, source, helpers=not dedicated):
        if isinstance(path, Broken):
            yield path
            continue
        parts = [name, *path.relative_to(folder.resolve()).with_suffix("").parts]
        if parts[-1] == "__init__":
            parts.pop()
        yield Candidate(path, ".".join(parts), source, dedicated)


def _python_files(folder: Path, source: str, *, helpers: bool = False) -> Iterator[Path | Broken]:
    """Python files below a folder, sorted. Names that begin with ``_`` or ``.`` are helpers."""
    folder = folder.resolve()
    errors: list[OSError] = []
    found: list[Path] = []
    for root, folders, files in os.walk(folder, onerror=errors.append):
        folders[:] = sorted(name for name in folders if not name.startswith((".", "__")))
        for name in files:
            if name.endswith(".py") and not name.startswith(".") and (helpers or not name.startswith("_")):
                found.append(Path(root, name))
    yield from sorted(found)
    for error in errors:
        yield Broken(str(error.filename or folder), f"cannot be read: {error.strerror}", "", source)


def _entry_point(point: EntryPoint) -> Iterator[Found]:
    module, _, attribute = point.value.partition(":")
    location = _locate(module)
    if location is None:
        hint = f"install the distribution of {point.name!r} again, or uninstall it"
        yield Broken(point.source, f"there is no module {module!r}", hint, point.source, (point.name,))
    elif attribute:
        yield ObjectCandidate(point.value, point.source)
    elif location.is_dir():
        yield from _package(location, module, point.source, dedicated=False)
    else:
        yield Candidate(location.resolve(), module, point.source, dedicated=True)


def _locate(module: str) -> Path | None:
    """File of a module or folder of a package; importing nothing, not even the packages above it."""
    head, *rest = module.split(".")
    try:
        spec = find_spec(head)
    except (ImportError, ValueError, AttributeError):
        return None
    if spec is None:
        return None
    if spec.submodule_search_locations is None:
        return Path(spec.origin) if spec.origin and not rest and Path(spec.origin).is_file() else None
    for location in spec.submodule_search_locations:
        base = Path(location, *rest)
        if base.is_dir():
            return base
        if rest and base.with_suffix(".py").is_file():
            return base.with_suffix(".py")
    return None


def _drop_in() -> Iterator[Found]:
    folders, named = drop_in_folders()
    for folder in folders:
        if folder.is_file():
            yield Candidate(folder.resolve(), None, "drop-in", dedicated=True)
        elif folder.is_dir():
            yield from _files_in(folder, "drop-in")
        elif named:
            yield Broken(str(folder), "there is no such folder", "correct $KDBENCH_PLUGINS", "drop-in")


def _files_in(folder: Path, source: str) -> Iterator[Found]:
    for path in _python_files(folder, source):
        yield path if isinstance(path, Broken) else Candidate(path, None, source, dedicated=True)


def _given(plugins: Sequence[Path]) -> Iterator[Found]:
    for path in plugins:
        if path.is_dir():
            yield from _files_in(path, "--plugin")
        elif not path.exists():
            near = [p.name for p in path.parent.glob("*.py")] if path.parent.is_dir() else []
            hint = did_you_mean(path.name, near, label="Python files there") if near else ""
            raise UsageError(f"there is no file {path}", place="--plugin", hint=hint)
        elif path.suffix != ".py":
            raise UsageError(f"{path} is no Python file", place="--plugin", hint="a plugin is a .py file or a folder")
        else:
            yield Candidate(path.resolve(), None, "--plugin", dedicated=True)
