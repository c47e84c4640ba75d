"""What a claim names: methods with parameters, and tasks at a scale; and the jobs that check it."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from kdbench.cards import Compare
from kdbench.errors import UsageError

if TYPE_CHECKING:
    from kdbench.catalog import TaskEntry
    from kdbench.discovery.records import Method
    from kdbench.job import Job
    from kdbench.registry import Registry


@dataclass(frozen=True)
class Sought:
    """A side of a claim: a method with parameters, or a number."""

    label: str
    """The method with the parameters that differ from its defaults."""
    key: str = ""
    """``track/slug``; empty for a number."""
    given: Mapping[str, Any] = field(default_factory=dict)
    params: Mapping[str, Any] = field(default_factory=dict)
    """Every parameter, as outcomes have them."""
    constant: float | None = None
    problem: str = ""
    """Why there can be no results of it."""

    @cached_property
    def canonical(self) -> str:
        """See :func:`canonical`."""
        return canonical(self.params)


@dataclass(frozen=True)
class Stated:
    """A claim of a card, with what it names looked up."""

    method: Method
    number: int
    """Which of the card's claims, from 1."""
    claim: Compare
    subject: Sought
    reference: Sought
    task_names: frozenset[str]
    """Of all tasks of the track, without it: a name that a task and a family have is the task's here."""

    @property
    def sides(self) -> tuple[Sought, Sought]:
        return self.subject, self.reference

    def about(self, task: str, family: str) -> bool:
        """Whether the claim names a task, its family or all."""
        return not (_names(task, family) - (self.task_names - {task.partition("/")[2]})).isdisjoint(self.claim.tasks)

    def _asks_for(self, entry: TaskEntry) -> bool:
        if entry.requires:
            return not {entry.name, entry.name.partition("/")[2]}.isdisjoint(self.claim.tasks)
        return self.about(entry.name, entry.family)

    def fits(self, registry: Registry, task: str, family: str) -> bool:
        """Whether the methods of both sides are made for a task, as far as they are known."""
        return all(not _names(task, family).isdisjoint(method.card.tasks) for method in self._methods(registry))

    def _methods(self, registry: Registry) -> list[Method]:
        return [registry.methods[side.key] for side in self.sides if side.key in registry.methods]

    def tasks(self, registry: Registry, scale: str) -> tuple[list[str], str]:
        """Its tasks that have a scale and that both sides are made for; or why there is none.

        A task that needs further packages is among them where the claim names it, not where it names its family or all:
        most who check a claim cannot run it.
        """
        entries = [entry for entry in registry.tasks() if entry.track == self.method.track]
        known = {name for entry in entries for name in _names(entry.name, entry.family)}
        unknown = [name for name in self.claim.tasks if name not in known]
        if unknown:
            return [], f"the track {self.method.track} has no task and no family {unknown[0]!r}"
        named = ", ".join(self.claim.tasks)
        scaled = [entry for entry in entries if scale in entry.scales and self._asks_for(entry)]
        if not scaled:
            return [], f"no task of the claim ({named}) has the scale {scale!r}"
        fitting = [entry.name for entry in scaled if self.fits(registry, entry.name, entry.family)]
        if not fitting:
            both = " and ".join(method.slug for method in self._methods(registry))
            return [], f"no task of the claim ({named}) is for {both}"
        return fitting, ""


def _names(task: str, family: str) -> set[str]:
    """What a card may call a task."""
    return {"*", family, task, task.partition("/")[2]}


def claims_of(registry: Registry, method: Method) -> Iterator[Stated]:
    """The claims of a method's card."""
    if not method.card.claims:
        return
    names = frozenset(entry.name.partition("/")[2] for entry in registry.tasks() if entry.track == method.track)
    for number, claim in enumerate(method.card.claims, 1):
        yield Stated(
            method,
            number,
            claim,
            _sought(registry, claim.subject, method.track),
            _sought(registry, claim.reference, method.track),
            names,
        )


def suite_of_claims(registry: Registry, method: Method, scale: str, seeds: Sequence[int]) -> dict[str, Any]:
    """A suite, as data, with every job that the claims of a method are about at a scale, and no other.

    Raises ``UsageError`` where the card claims nothing, or names a method, a parameter or a task that is not there.
    """
    place = f"{method.path}:{method.line}"
    if not method.card.claims:
        raise UsageError(f"the card of {method.key} makes no claims", place=place)
    tasks: dict[str, None] = {}
    sides: dict[tuple[str, str], dict[str, Any]] = {}
    for stated in claims_of(registry, method):
        names, problem = stated.tasks(registry, scale)
        for reason in (*(side.problem for side in stated.sides), problem):
            if reason:
                raise UsageError(f"claim {stated.number} cannot be checked: {reason}", place=place)
        tasks |= dict.fromkeys(names)
        for side in stated.sides:
            if side.constant is None:
                empty = {"method": side.key, "params": dict(side.given), "tasks": []}
                entry = sides.setdefault((side.key, side.canonical), empty)
                entry["tasks"] += [name for name in names if name not in entry["tasks"]]
    namesakes = [other for other in registry.methods.values() if other.slug == method.slug and other.card.claims]
    return {
        "name": "claims-" + (method.slug if len(namesakes) == 1 else f"{method.track}-{method.slug}"),
        "description": f"what the claims of {method.key} are about",
        "scale": scale,
        "tasks": list(tasks),
        "methods": list(sides.values()),
        "seeds": list(seeds),
    }


def compared(registry: Registry, jobs: Sequence[Job], decided: Container[tuple[str, int, str]] = ()) -> list[Job]:
    """Of these jobs those that a claim of any card compares, in their order.

    A claim compares the jobs of both its sides on each of its tasks on which both are among ``jobs``; one about a
    number, those of the other side. What no claim names, as most often the floor and the ceiling of a task, is not.
    ``decided``: claims, each with the digest of a task, that do not count
    (:func:`kdbench.leaderboard.claims.decided`).
    """
    texts: dict[int, str] = {}
    """Parameters as text, by the identity of the mapping, which jobs of one method share."""
    rows: dict[tuple[str, str, str], list[Job]] = defaultdict(list)
    tasks: dict[str, dict[str, str]] = defaultdict(dict)
    """Names by the digest of the task, by track."""
    for job in jobs:
        text = texts.get(id(job.params)) or texts.setdefault(id(job.params), canonical(job.params))
        rows[job.spec_digest, job.method, text].append(job)
        tasks[job.task.partition("/")[0]][job.spec_digest] = job.task
    families = {job.spec_digest: str(job.spec["family"]) for job in jobs}
    found: set[str] = set()
    for method in registry.methods.values():
        for stated in claims_of(registry, method) if method.track in tasks else ():
            if any(side.problem for side in stated.sides):
                continue
            for digest, task in tasks[method.track].items():
                about = task, families[digest]
                known = (method.key, stated.number, digest) in decided
                if not known and stated.about(*about) and stated.fits(registry, *about):
                    both = [rows.get((digest, s.key, s.canonical), []) for s in stated.sides if s.constant is None]
                    if all(both):
                        found.update(job.id for side in both for job in side)
    return [job for job in jobs if job.id in found]


def _sought(registry: Registry, side: str | dict[str, Any] | float, track: str) -> Sought:
    from kdbench.resolve import label_of

    if isinstance(side, int | float):
        return Sought(f"{side:g}", constant=float(side))
    name, given = (side, {}) if isinstance(side, str) else (str(side["method"]), dict(side.get("params", {})))
    try:
        method = registry.method(name, track)
    except UsageError as error:
        return Sought(name, name, given, problem=str(error.problems[0]))
    # read as JSON and not with a model of the parameters: making hundreds of models would take seconds
    given = json.loads(json.dumps(given))
    defaults = json.loads(json.dumps({item.name: item.default for item in method.fields}))
    unknown = [key for key in given if key not in defaults]
    params = {**defaults, **{key: value for key, value in given.items() if key in defaults}}
    problem = f"{method.key} has no parameter {unknown[0]!r}" if unknown else ""
    return Sought(label_of(method.slug, params, defaults), method.key, given, params, problem=problem)


def canonical(params: Mapping[str, Any]) -> str:
    """Parameters as a text that is equal where their values are; 4 and 4.0 are equal."""
    return json.dumps(_plain(params), sort_keys=True)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if isinstance(value, float) and math.isfinite(value) and value == int(value):
        return int(value)
    return value
