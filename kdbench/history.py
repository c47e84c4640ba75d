"""What a results folder says about the jobs of a plan: which are done, which are stale, how long the rest takes."""

from __future__ import annotations

import logging
from collections.abc import Hashable, Sequence
from datetime import datetime
from functools import cache
from importlib import util
from itertools import islice
from pathlib import Path
from statistics import fmean
from typing import Any

from kdbench.cache import file_digest
from kdbench.errors import Problem, UsageError
from kdbench.job import Job, Status
from kdbench.spec import digest
from kdbench.store import spool

log = logging.getLogger(__name__)

LOOK_BACK = 2000
"""Outcomes of other plans that an estimate reads at most, so that a plan stays quick in a large results folder."""


class History:
    """Outcomes of a results folder, as far as a plan needs them."""

    def __init__(self, results: Path, jobs: Sequence[Job]) -> None:
        self.jobs = jobs
        self.problems: list[Problem] = []
        """Damaged outcomes; their jobs count as not done."""
        self.done: dict[str, Status] = {}
        self._modules: dict[str, dict[str, str]] = {}
        self._seconds: dict[Hashable, list[float]] = {}
        names = {folder.name: folder for folder in spool.iter_folders(results)}
        for job in jobs:
            raw = self._read(names.pop(job.id)) if job.id in names else None
            if raw is None:
                continue
            self.done[job.id] = raw["status"]
            modules = raw.get("provenance", {}).get("modules", {})
            self._modules[job.id] = modules if isinstance(modules, dict) else {}
        if any(self._guess(job) is None for job in jobs if job.id not in self.done):
            for folder in islice(names.values(), LOOK_BACK):
                self._read(folder)

    def _read(self, folder: Path) -> dict[str, Any] | None:
        try:
            raw = spool.read_raw(folder)
        except UsageError as error:
            self.problems.extend(error.problems)
            return None
        if raw is not None and raw["status"] == "ok":
            self._remember(raw)
        return raw

    def _remember(self, raw: dict[str, Any]) -> None:
        """Keep how long an outcome took; one that does not say it as it should is no help, but no harm either."""
        try:
            job = raw["job"]
            taken = datetime.fromisoformat(raw["finished_at"]) - datetime.fromisoformat(raw["started_at"])
            keys = _keys(job["method"], job["task"], job["spec"]["scale"], digest(job["spec"]))
        except (KeyError, TypeError, ValueError) as error:
            log.debug("outcome %s says nothing about its time: %s", raw.get("id"), error)
            return
        for key in keys:
            self._seconds.setdefault(key, []).append(taken.total_seconds())

    def _guess(self, job: Job) -> float | None:
        """Seconds that a job takes: the mean of the most alike past outcomes, or None where there are none."""
        for key in _keys(job.method, job.task, job.scale, job.spec_digest):
            if key in self._seconds:
                return fmean(self._seconds[key])
        return None

    def estimate(self, slots: int) -> tuple[float | None, int]:
        """Wall-clock seconds of the jobs that are left with ``slots`` at a time, and how many jobs it leaves out."""
        guesses = [self._guess(job) for job in self.jobs if job.id not in self.done]
        known = [guess for guess in guesses if guess is not None]
        if not known:
            return (None if guesses else 0.0), len(guesses)
        return max(sum(known) / slots, max(known)), len(guesses) - len(known)

    def stale(self) -> dict[str, list[str]]:
        """For every done job whose outcome was made with other code: the modules whose files differ now."""
        found: dict[str, list[str]] = {}
        for id_, modules in self._modules.items():
            changed = sorted(name for name, then in modules.items() if module_digest(name) != then)
            if changed:
                found[id_] = changed
        return found


def _keys(method: str, task: str, scale: str, spec_digest: str) -> tuple[Hashable, ...]:
    """What outcomes are alike in, the most alike first: the very task, then its scale, then any method on it."""
    return (method, spec_digest), (method, task, scale), (task, scale)


@cache
def module_digest(name: str) -> str | None:
    """First 16 hexadecimal digits of the SHA-256 of a module's file now; None where there is none.

    The module is not imported, nor are the packages around it.
    """
    top, *rest = name.split(".")
    try:
        spec = util.find_spec(top)
    except (ImportError, ValueError):
        spec = None
    if spec is None:
        return None
    if not rest:
        places = [Path(spec.origin)] if spec.origin else []
    else:
        roots = [Path(root).joinpath(*rest) for root in spec.submodule_search_locations or ()]
        places = [place for root in roots for place in (root.with_name(root.name + ".py"), root / "__init__.py")]
    for place in places:
        if place.is_file():
            return file_digest(place)[:16]
    return None
