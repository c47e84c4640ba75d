"""Where a result comes from: code, packages, hardware.

What is the same for all jobs of a run is collected once by the coordinator and handed to the workers; a job adds
its device and the digests of the kdbench modules that it used.
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from collections.abc import Iterable
from functools import cache
from importlib import metadata
from itertools import islice
from pathlib import Path
from typing import Any

import kdbench
from kdbench.cache import file_digest

PACKAGES = (
    "kdbench",
    "torch",
    "transformers",
    "lm-eval",
    "datasets",
    "tokenizers",
    "accelerate",
    "numpy",
    "scipy",
    "scikit-learn",
    "numba",
    "pydantic",
)
"""Packages whose versions can change results."""

WITHOUT_INFLUENCE = (
    "api",
    "cli",
    "discovery",
    "history",
    "leaderboard",
    "plan",
    "preflight",
    "quantities",
    "registry",
    "resolve",
    "schedule",
    "store",
    "suite",
    "wording",
    "yamlio",
)
"""Parts of kdbench that schedule, store and show: editing them makes no outcome stale."""

GIT_TIMEOUT = 5
"""Seconds after which git is given up on, as on a file system that hangs."""


def git_state(folder: Path) -> dict[str, Any]:
    """Commit and dirty flag of the checkout whose root is ``folder``; empty where it is none or git is missing."""
    if not (folder / ".git").exists():  # a file in work trees
        return {}
    try:
        commit = _git(folder, "rev-parse", "HEAD")
        dirty = bool(_git(folder, "status", "--porcelain"))
    except (OSError, subprocess.SubprocessError):
        return {}
    return {"commit": commit, "dirty": dirty}


def _git(folder: Path, *arguments: str) -> str:
    command = ["git", "-C", str(folder), "--no-optional-locks", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=GIT_TIMEOUT)
    return done.stdout.strip()


def package_versions(names: Iterable[str] = PACKAGES) -> dict[str, str]:
    """Installed versions by distribution name; those that are not installed are left out."""
    versions = {}
    for name in names:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions


def cpu_model() -> str:
    """Name of the processor, or the architecture where the system does not tell."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


@cache
def of_run() -> dict[str, Any]:
    """What all jobs of a process have in common; computed once (tens of milliseconds, most of them in git)."""
    from kdbench.schedule import machine

    return {
        "git": git_state(Path(kdbench.__file__).parents[1]),
        "packages": package_versions(),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "hardware": {"cpu": cpu_model(), "cores": os.cpu_count(), "memory_bytes": machine.memory()},
    }


_read: dict[str, str] = {}
"""Digests by module name, of the first modules of ``sys.modules``; inherited by forked workers."""
_n_read = 0


def module_digests(track: str) -> dict[str, str]:
    """First 16 hexadecimal digits of the SHA-256 of every imported kdbench module that can change a result.

    Modules of other tracks, which a worker may have imported for other jobs, and those that only schedule, store
    and show are left out. A digest is taken once per process, so that it is of the code that was loaded even where
    the file changes later.
    """
    global _n_read
    # only what is new is looked at: to touch thousands of names would copy their memory in every forked worker
    n_new = len(sys.modules) - _n_read if len(sys.modules) >= _n_read else len(sys.modules)
    for name in list(islice(reversed(sys.modules), n_new)):
        path = getattr(sys.modules.get(name), "__file__", None) if name.partition(".")[0] == "kdbench" else None
        if path is not None and path.endswith(".py") and name not in _read:
            _read[name] = file_digest(Path(path))[:16]
    _n_read = len(sys.modules)
    return {name: digest for name, digest in sorted(_read.items()) if _counts(name, track)}


def forget(modules: Iterable[str]) -> None:
    """A job is over and these modules were removed from ``sys.modules``: the next job has not used them."""
    global _n_read
    for name in modules:
        _read.pop(name, None)
    _n_read = len(sys.modules)


def _counts(name: str, track: str) -> bool:
    parts = name.split(".")[1:]
    if parts and parts[0] in WITHOUT_INFLUENCE:
        return False
    return parts[:1] != ["tracks"] or parts[1:2] in ([], [track])


def device_name(device: str) -> str:
    """``cpu``, or the name of the GPU that the job computes on."""
    if device == "cpu":
        return device
    import torch

    return f"{device}: {torch.cuda.get_device_name()}"
