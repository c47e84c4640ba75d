"""Which method is meant: a file or a slug."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from kdbench.errors import Problem, UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from kdbench.discovery.records import Method
    from kdbench.registry import Registry


def subjects(names: Sequence[str], plugins: Sequence[Path] = ()) -> tuple[Registry, list[Method]]:
    """The methods that ``names`` stand for, slugs or files, with a registry that has them all.

    Raises ``UsageError`` where one is not there or cannot be used, with every reason.
    """
    from kdbench.registry import discover

    files = {name: Path(name) for name in names if name.endswith(".py") or (os.sep in name and Path(name).exists())}
    registry = discover((*plugins, *files.values()))
    return registry, [_of(registry, files[name]) if name in files else registry.method(name) for name in names]


def _of(registry: Registry, path: Path) -> Method:
    there = path.resolve()
    found = [method for method in registry.methods.values() if method.path.resolve() == there]
    if found:
        return found[0]
    broken = [item for item in registry.broken if item.place.rsplit(".py", 1)[0] + ".py" == str(there)]
    if broken:
        raise UsageError([Problem(item.place, item.reason, item.hint) for item in broken])
    raise UsageError("there is no method in it", place=str(path), hint="give a file with a card, not a folder")
