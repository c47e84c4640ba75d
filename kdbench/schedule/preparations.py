"""Teachers that jobs wait for: which are missing, who makes them, and who waits."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from kdbench.cache import Cache
from kdbench.job import Job
from kdbench.schedule.order import Preparation
from kdbench.spec import canonical_json

if TYPE_CHECKING:
    from kdbench.plan import Plan


def needs_of(plans: Iterable[Plan]) -> dict[str, tuple[str, ...]]:
    """Names of the cache entries that jobs read, made or not, by the digest of their task's specification."""
    found: dict[str, tuple[str, ...]] = {}
    for planned in (task for plan in plans for task in plan.tasks):
        if planned.digest not in found:
            found[planned.digest] = tuple(canonical_json([kind, key]) for kind, key, _ in planned.spec.teacher_needs())
    return found


def preparations_of(plans: Sequence[Plan], jobs: Iterable[Job]) -> tuple[list[Preparation], dict[str, str]]:
    """What is to be made before ``jobs`` can start, and by the id of a job the id of the preparation it waits for."""
    missing = {
        canonical_json([need.kind, need.key]): need.title
        for plan in plans
        for need in plan.teachers
        if not need.present
    }
    if not missing:
        return [], {}
    needs = needs_of(plans)
    preparations: dict[str, Preparation] = {}
    waits: dict[str, str] = {}
    by_task: dict[str, str | None] = {}
    for job in jobs:
        if job.spec_digest not in by_task:
            names = tuple(name for name in needs[job.spec_digest] if name in missing)
            preparation = Preparation(job, names, ", ".join(missing[name] for name in names))
            by_task[job.spec_digest] = preparation.id if names else None
            if names:
                preparations.setdefault(preparation.id, preparation)
        waited = by_task[job.spec_digest]
        if waited is not None:
            waits[job.id] = waited
    return list(preparations.values()), waits


class Presence:
    """Whether a cache entry is there by now: in the user's cache or in one of the packs that tracks ship."""

    def __init__(self, packs: Sequence[Path]) -> None:
        self.packs = packs

    def __call__(self, need: str) -> bool:
        kind, key = json.loads(need)
        return Cache(packs=list(self.packs)).find(kind, key) is not None
