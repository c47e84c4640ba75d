"""The runs of a method that the checks look at; each is made when a check first asks for it, and once."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from kdbench.cache import Cache
from kdbench.conformance.interrupting import run_in_two
from kdbench.conformance.watch import Seen, watching
from kdbench.discovery.records import Method
from kdbench.errors import UsageError
from kdbench.job import Job, Outcome
from kdbench.paths import cache_root
from kdbench.registry import Registry
from kdbench.spec import TaskSpec
from kdbench.store import spool
from kdbench.worker import repeatable, run_job

SMALLEST = "smoke"
"""The scale on which methods are checked."""


def smallest_task(registry: Registry, method: Method, name: str | None = None) -> TaskSpec:
    """The first task of the method's track that lists it, has the smallest scale and can run here; or the named one.

    Raises ``UsageError`` where there is none.
    """
    if name is not None:
        full = name if "/" in name else f"{method.track}/{name}"
        spec = registry.task(full, SMALLEST)
        if not registry.supports(method, spec):
            hint = f"its card lists {', '.join(method.card.tasks)}"
            raise UsageError(f"{method.key} does not belong to {full}", place="--task", hint=hint)
        return spec
    for entry in registry.tasks():
        if entry.track == method.track and SMALLEST in entry.scales and registry.supports(method, entry):
            spec = registry.task(entry.name, SMALLEST)
            if not spec.problems():
                return spec
    names = [entry.name for entry in registry.tasks() if entry.track == method.track]
    hint = f"its card lists {', '.join(method.card.tasks)}; the track has {', '.join(names) or 'no task'}"
    raise UsageError(f"{method.key} belongs to no task with the scale {SMALLEST}", place=str(method.path), hint=hint)


@dataclass(frozen=True)
class Ran:
    """One run."""

    outcome: Outcome
    folder: Path


class Evidence:
    """What is known of a method on one task."""

    def __init__(self, registry: Registry, method: Method, spec: TaskSpec, folder: Path) -> None:
        """``folder`` is where its jobs run; it should be empty."""
        self.registry = registry
        self.method = method
        self.spec = spec
        self.folder = folder
        self.seen = Seen()
        """Of the run :attr:`watched`; filled when that was made."""

    def job(self, seed: int = 0, spec: TaskSpec | None = None) -> Job:
        """A job of the method at its defaults."""
        spec = spec if spec is not None else self.spec
        return Job(
            method=self.method.key,
            method_digest=self.method.digest,
            params=self.method.canonical({}),
            task=spec.name,
            spec=spec.identity(),
            seed=seed,
            track_version=self.registry.tracks[self.method.track].version,
            method_file=self.method.path,
            module=self.method.module,
            keep=("model",),
        )

    def run(self, name: str, job: Job, device: str = "cpu") -> Ran:
        folder = self.folder / name
        return Ran(run_job(job, folder, device=device, registry=self.registry), folder)

    @cached_property
    def first(self) -> Ran:
        """An ordinary run."""
        return self.run("first", self.job())

    @cached_property
    def again(self) -> tuple[Ran, int]:
        """The same job, interrupted somewhere and gone on; and after how many checkpoints it was interrupted."""
        cost = self.first.outcome.cost
        total = int(cost.get("steps", 0) + cost.get("aux_steps", 0))
        somewhere = 1 + zlib.crc32(self.method.key.encode()) % max(1, total - 1)
        folder = self.folder / "again"
        outcome, stopped_after = run_in_two(self.job(), folder, somewhere, registry=self.registry)
        return Ran(outcome, folder), stopped_after

    @cached_property
    def watched(self) -> Ran:
        """A run with another seed, watched. What packages do when they are first imported is over by then."""
        _ = self.first
        temporary, folder = self.folder / "temporary", self.folder / "watched"
        with watching(temporary, folder, cache_root()) as self.seen:
            return Ran(run_job(self.job(seed=1), folder, registry=self.registry), folder)

    @cached_property
    def single(self) -> Ran:
        """A run with batches of one sample."""
        primary = next(iter(self.spec.limits), None)
        limits = None if primary is None else {**self.spec.limits, primary: min(3.0, self.spec.limits[primary])}
        spec = self.registry.task(self.spec.name, SMALLEST, {"recipe": {"batch_size": 1}}, limits)
        return self.run("single", self.job(spec=spec))

    @cached_property
    def on_cuda(self) -> Ran | None:
        """The first run on a GPU; None where there is none."""
        return self.run("cuda", self.job(), "cuda") if torch.cuda.is_available() else None

    def loaded_scores(self) -> dict[str, float]:
        """Official metrics of what the watched run saved, read back from its folder."""
        task = self.seen.task
        assert task is not None
        with repeatable():
            task.seed_globals("eval")
            model: Any = task.load(self.watched.folder / spool.MODEL)
            if isinstance(model, torch.nn.Module):
                task.place(model)
            return task.score(model)

    def damaged_cache(self) -> list[str]:
        """Entries of the cache that the task needs and that are not whole any more."""
        cache = Cache()
        paths = [cache.path(kind, key) for kind, key, _ in self.spec.teacher_needs()]
        return [f"{path.name}: {reason}" for path in paths if path.is_dir() and (reason := Cache.damage(path))]
