"""What ``kdbench doctor`` looks at: versions, devices, optional packages, folders, locks, plugins, offline state.

Nothing is changed, no lock is taken and no network is asked.
"""

from __future__ import annotations

import os
import platform
import shutil
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from kdbench import __version__, paths
from kdbench.quantities import show_bytes

if TYPE_CHECKING:
    from kdbench.registry import Registry

State = Literal["ok", "note", "problem"]

EXTRAS = {
    "bench": "benchmarks/scheduler.py beside other schedulers",
    "data": "tasks with real pictures and pretrained teachers",
    "dev": "tests and linters of kdbench itself",
    "diffusion": "pretrained teachers of the track diffusion, through diffusers",
    "docs": "the pages of docs/, with make docs",
    "gpu": "memory and other users of NVIDIA GPUs, without starting CUDA",
    "policy": "environments of gymnasium in the track policy",
    "quantize": "teachers with weights in 8 or 4 bits",
    "ray": "executor: ray",
    "report": "kdbench report",
}
"""What each set of optional packages is for."""

LITTLE_SPACE = 1 << 30
"""Bytes free under which a folder is worth a note: a full disk stops a run."""

OFFLINE = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE")
"""Variables that keep Hugging Face's libraries from the network."""


@dataclass(frozen=True)
class Check:
    """One thing that was looked at."""

    section: str
    name: str
    value: str
    state: State = "ok"
    """``note``: something works only in part; ``problem``: something that was asked for will fail."""
    hint: str = ""
    """What to do."""


def checkup(registry: Registry, results: Path) -> list[Check]:
    """Everything, in the order in which it is shown. Asking torch for GPUs may take seconds."""
    return [
        *_versions(),
        *_devices(),
        *_packages(),
        *_folders(results),
        *_locks(results),
        *_plugins(registry),
        *_network(),
    ]


def _versions() -> Iterator[Check]:
    from kdbench.provenance import package_versions

    yield Check("versions", "kdbench", __version__)
    yield Check("versions", "python", f"{platform.python_version()} ({sys.executable})")
    yield Check("versions", "system", f"{platform.system()} {platform.release()} {platform.machine()}")
    for name, version in package_versions().items():
        if name != "kdbench":
            yield Check("versions", name, version)


def _devices() -> Iterator[Check]:
    from kdbench.errors import UsageError
    from kdbench.provenance import cpu_model
    from kdbench.schedule import machine

    yield Check("devices", "cpu", f"{cpu_model()}, {machine.cores()} cores for this process")
    yield Check("devices", "memory", show_bytes(machine.memory()))
    if not machine.torch_has_gpus():
        found = machine.gpu_count()
        if found:
            hint = "install a torch for CUDA: https://pytorch.org/get-started/locally"
            yield Check("devices", "gpu", f"{found} there, but this torch is for CPUs only", "note", hint)
        else:
            yield Check("devices", "gpu", "none; this torch is for CPUs only")
        return
    try:
        gpus = machine.gpus()
    except UsageError as error:
        yield Check("devices", "gpu", str(error.problems[0].message), "problem", error.problems[0].hint)
        return
    for gpu in gpus:
        yield Check("devices", gpu.id, f"{gpu.name}, {show_bytes(gpu.memory)}, {show_bytes(gpu.used)} used by others")
    if not gpus:
        yield Check("devices", "gpu", "none")


def _packages() -> Iterator[Check]:
    """A line for each extra: complete, or what is missing and the command that installs it."""
    for extra, missing in missing_packages().items():
        purpose = EXTRAS.get(extra, "")
        if missing:
            command = f"pip install 'kdbench[{extra}]'"
            yield Check("optional", extra, f"{purpose}: missing {', '.join(missing)}", "note", command)
        else:
            yield Check("optional", extra, f"{purpose}: installed")


def missing_packages() -> dict[str, list[str]]:
    """For each extra of the installed kdbench, its packages that are missing or too old, by name."""
    from packaging.requirements import Requirement

    found: dict[str, list[str]] = {extra: [] for extra in metadata.metadata("kdbench").get_all("Provides-Extra") or ()}
    for text in metadata.requires("kdbench") or ():
        required = Requirement(text)
        for extra in found:
            marker = required.marker
            if marker is None or marker.evaluate({"extra": ""}) or not marker.evaluate({"extra": extra}):
                continue  # a package that everybody needs, or that another extra brings
            try:
                version = metadata.version(required.name)
            except metadata.PackageNotFoundError:
                found[extra].append(required.name)
                continue
            if not required.specifier.contains(version, prereleases=True):
                found[extra].append(f"{required.name} {required.specifier} (there is {version})")
    return found


def _folders(results: Path) -> Iterator[Check]:
    folders = [("results", results), ("cache", paths.cache_root())]
    folders += [("plugins", folder) for folder in paths.drop_in_folders()[0]]
    for name, folder in folders:
        there = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
        where = f"{folder}" if there == folder else f"{folder} (not made yet)"
        if name == "plugins":
            yield Check("folders", name, where)
        elif not os.access(there, os.W_OK | os.X_OK):
            hint = "choose another with " + ("--results" if name == "results" else "$KDBENCH_CACHE")
            yield Check("folders", name, f"{where} cannot be written", "problem", hint)
        else:
            free = shutil.disk_usage(there).free
            state: State = "ok" if free >= LITTLE_SPACE else "note"
            hint = "" if state == "ok" else "kdbench gc frees what is not needed"
            yield Check("folders", name, f"{where}, {show_bytes(free)} free", state, hint)


def _locks(results: Path) -> Iterator[Check]:
    """Who holds which lock, as the kernel tells: to try them would keep a run from a job for a moment."""
    from kdbench.schedule.attempts import running_folder
    from kdbench.store.duck import private_folder

    places = {"jobs": running_folder(results), "store": private_folder(results), "cache": paths.cache_root()}
    holders = lock_holders()
    for name, folder in places.items():
        if holders is None:
            yield Check("locks", name, "unknown: this system does not tell who holds a lock", "note")
            continue
        files = folder.rglob("*.lock") if name == "cache" else folder.glob("*.lock")
        held = [
            (path, holders[key]) for path in sorted([*files, *folder.glob(".lock")]) if (key := _inode(path)) in holders
        ]
        shown = ", ".join(f"{path.name} by process {pid}" for path, pid in held[:4])
        more = f" and {len(held) - 4} more" if len(held) > 4 else ""
        yield Check("locks", name, f"{len(held)} held: {shown}{more}" if held else "none held")


def lock_holders(table: Path = Path("/proc/locks")) -> dict[tuple[int, int, int], int] | None:
    """Processes by (major, minor, inode) of the files on which they hold a lock; None where the system has no table."""
    try:
        lines = table.read_text().splitlines()
    except OSError:
        return None
    found = {}
    for line in lines:
        words = line.split()
        if "->" in words[1:2]:
            continue  # one that waits
        major, minor, inode = words[5].split(":")
        found[int(major, 16), int(minor, 16), int(inode)] = int(words[4])
    return found


def _inode(path: Path) -> tuple[int, int, int]:
    try:
        status = path.stat()
    except FileNotFoundError:
        return 0, 0, 0
    return os.major(status.st_dev), os.minor(status.st_dev), status.st_ino


def _plugins(registry: Registry) -> Iterator[Check]:
    number = len(registry.methods)
    yield Check("plugins", "methods", f"{number} in {len(registry.tracks)} tracks, {len(registry.tasks())} tasks")
    for broken in registry.broken:
        yield Check("plugins", broken.place, broken.reason, "problem", broken.hint)


def _network() -> Iterator[Check]:
    given = [name for name in OFFLINE if os.environ.get(name, "").upper() in ("1", "ON", "YES", "TRUE")]
    value = f"off: {', '.join(given)}" if given else "allowed: models and data sets with hub names are downloaded"
    yield Check("offline", "Hugging Face hub", value)


def worst(checks: Iterable[Check]) -> State:
    """The state of the whole."""
    states = {check.state for check in checks}
    return "problem" if "problem" in states else "note" if "note" in states else "ok"
