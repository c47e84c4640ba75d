"""What travels between the coordinator and the machines of a cluster: code, plugins, folders.

Code and plugins go as packages of a runtime environment, once for a run; folders go as tar archives in pieces, so
that neither side holds a large one in memory. Nothing that arrives is executed or unpickled here.
"""

from __future__ import annotations

import hashlib
import logging
import shutil
import tarfile
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import IO

from kdbench.cache import file_digest
from kdbench.errors import UsageError
from kdbench.quantities import show_bytes

log = logging.getLogger(__name__)

PACKAGES = ("kdbench", "kdbench_methods")
"""What kdbench itself is made of."""
CARGO = "kdbench_cargo"
"""Folder in which plugins arrive, importable on the machine."""
LARGEST = 200 << 20
"""Bytes of plugins that are shipped at most: a folder that holds data is named by mistake."""
PIECE = 8 << 20
"""Bytes of an archive that travel at a time."""
LEFT_OUT = ("__pycache__", ".*", "*.pyc")
"""Patterns of names that are not shipped."""


# --- code -------------------------------------------------------------------------------------------------------------


def package_folder(name: str) -> Path:
    """Where a package of kdbench is installed. Raises ``UsageError`` where it is not."""
    spec = find_spec(name)
    for place in (spec.submodule_search_locations or ()) if spec else ():
        return Path(place)
    raise UsageError(f"the package {name} is not installed", hint="install kdbench again")


def code_digest() -> str:
    """Equal where the files of kdbench's packages are equal: the first 16 hexadecimal digits of a SHA-256."""
    total = hashlib.sha256()
    for name in PACKAGES:
        root = package_folder(name)
        for path in sorted([*root.rglob("*.py"), *root.rglob("*.yaml")]):
            total.update(f"{name}/{path.relative_to(root).as_posix()} {file_digest(path)}\n".encode())
    return total.hexdigest()[:16]


@dataclass(frozen=True)
class Cargo:
    """Plugin files and folders, copied to where they can be shipped from."""

    folder: Path | None
    """The folder to ship; None: there are none."""
    roots: tuple[Path, ...]
    """What was copied, each into a folder named by its position."""
    plugins: tuple[str, ...]
    """The plugins, relative to the folder."""

    def name_of(self, path: Path) -> str | None:
        """A file's place in the cargo, or None where it is not part of it."""
        resolved = path.resolve()
        for number, root in enumerate(self.roots):
            if resolved == root or root in resolved.parents:
                return f"{number}/{resolved.relative_to(root.parent).as_posix()}"
        return None


def load(plugins: Sequence[Path], target: Path) -> Cargo:
    """Copy plugins below the folder ``target``.

    A file that belongs to a package (a folder with ``__init__.py``) takes the whole package along, so that it finds
    what lies beside it; any other file goes alone, and a folder as it is. Raises ``UsageError`` where they are too
    large together.
    """
    roots = tuple(dict.fromkeys(_root(path.resolve()) for path in plugins))
    folder = target / CARGO
    size = sum(_size(root) for root in roots)
    if size > LARGEST:
        named = ", ".join(str(root) for root in roots)
        raise UsageError(
            f"{show_bytes(size)} would be shipped to every machine, but at most {show_bytes(LARGEST)} are: {named}",
            place="--plugin",
            hint="name a folder that holds plugins only",
        )
    for number, root in enumerate(roots):
        place = folder / str(number)
        place.mkdir(parents=True)
        if root.is_dir():
            shutil.copytree(root, place / root.name, ignore=shutil.ignore_patterns(*LEFT_OUT))
        else:
            shutil.copyfile(root, place / root.name)
    cargo = Cargo(folder if roots else None, roots, ())
    names = [name for path in plugins for name in [cargo.name_of(path)] if name is not None]
    return Cargo(cargo.folder, roots, tuple(dict.fromkeys(names)))


def _root(path: Path) -> Path:
    """What is shipped for a plugin: the outermost package that it is part of, or itself."""
    inside = path if path.is_dir() else path.parent
    if not (inside / "__init__.py").exists():
        return path
    while (inside.parent / "__init__.py").exists():
        inside = inside.parent
    return inside


def _size(root: Path) -> int:
    if root.is_file():
        return root.stat().st_size
    parts = ((path, path.relative_to(root).parts) for path in root.rglob("*"))
    return sum(
        path.stat().st_size
        for path, names in parts
        if path.is_file() and not any(name.startswith(".") or name == "__pycache__" for name in names)
    )


def unloaded(name: str) -> Path:
    """Where a part of the cargo is on this machine. Raises ``UsageError`` where it did not arrive."""
    spec = find_spec(CARGO)
    for place in (spec.submodule_search_locations or ()) if spec else ():
        path = Path(place, name)
        if path.exists():
            return path.resolve()
    raise UsageError(f"the plugin {name.partition('/')[2]} did not arrive on this machine")


# --- folders ----------------------------------------------------------------------------------------------------------


def packed(parts: Iterable[tuple[Path, str]]) -> Iterator[bytes]:
    """A tar archive of folders, each under a name, in pieces; only files and folders, no links.

    Raises ``OSError`` where a file cannot be read, as one that vanishes meanwhile.
    """
    with tempfile.SpooledTemporaryFile(max_size=PIECE) as file:
        with tarfile.open(fileobj=file, mode="w") as archive:
            for folder, name in parts:
                archive.add(folder, arcname=name, filter=lambda member: member if _plain(member) else None)
        file.seek(0)
        while piece := file.read(PIECE):
            yield piece


def _plain(member: tarfile.TarInfo) -> bool:
    return member.isfile() or member.isdir()


def unpack(archive: IO[bytes], folder: Path) -> None:
    """Put what an archive holds into a folder, in place of what is there. Raises ``OSError`` where the disk is full."""
    folder.mkdir(parents=True, exist_ok=True)
    for entry in folder.iterdir():
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink()
    archive.seek(0)
    with tarfile.open(fileobj=archive, mode="r:") as opened:
        opened.extractall(folder, filter="data")
