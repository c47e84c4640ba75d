"""Names and parameters of a suite become task specifications and methods, each problem with its place."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdbench import yamlio
from kdbench.discovery.params import no_parameter
from kdbench.errors import Problem, UsageError, did_you_mean, in_order
from kdbench.job import Resources
from kdbench.spec import TaskSpec, canonical_json, digest
from kdbench.suite import MethodChoice, Suite, SuiteError, TaskChoice, load_suite, resolve_suite, suite_of
from kdbench.yamlio import Document

if TYPE_CHECKING:
    from kdbench.registry import Method, Registry

MAX_JOBS = 200_000
"""Larger plans are refused: a slip in a grid, more likely than a wish."""

UNITS = frozenset(
    {"steps", "aux_steps", "samples", "tokens", "teacher_queries", "generated_tokens", "generated_samples", "flops"}
)
"""What a budget may limit beside the units that the task itself limits: the meters of every track."""


@dataclass(frozen=True)
class PlannedTask:
    """A task of the suite, resolved."""

    index: int
    """Position in the suite's ``tasks``."""
    choice: TaskChoice
    spec: TaskSpec
    identity: dict[str, Any]
    text: str
    """Canonical JSON of the identity."""
    digest: str
    """Of the identity, as :attr:`kdbench.job.Job.spec_digest`."""
    version: int
    """Of the track."""

    @property
    def label(self) -> str:
        """``name@scale``, with what the suite changes."""
        changes = [*_leaves(self.choice.override), *self.choice.budget.items()]
        return f"{self.spec.name}@{self.spec.scale}" + _brackets(dict(changes))


@dataclass(frozen=True)
class PlannedMethod:
    """A method with its parameters, on a task."""

    index: int
    """Position in the suite's ``methods``."""
    method: Method
    params: dict[str, Any]
    label: str


@dataclass(frozen=True)
class Asked:
    """Resources, and which entries of the suite ask for them together."""

    resources: Resources
    task: int
    """Position in the suite's ``tasks``."""
    method: int
    """Position in the suite's ``methods``."""

    @classmethod
    def of(cls, suite: Suite, task: int, method: int) -> Asked:
        """Field by field, what the method's entry says, or else the task's, or else the suite.

        ``gpus: 0`` means no device at all, so that GPU memory which is asked for further out does not count there.
        """
        merged: dict[str, Any] = {}
        for level in (suite.resources, suite.tasks[task].resources, suite.methods[method].resources):
            own = level.model_dump(include=level.model_fields_set)
            if own.get("gpus") == 0:
                merged.pop("gpu_memory", None)
            merged |= own
        return cls(Resources(**merged), task, method)

    def place(self, suite: Suite, field: str) -> str:
        """``file:line:column`` of the value of a field that counts."""
        for name, position in (("methods", self.method), ("tasks", self.task)):
            choice: MethodChoice | TaskChoice = getattr(suite, name)[position]
            if field in choice.resources.model_fields_set:
                return suite.place(name, position, "resources", field)
        return suite.place("resources", field)


def open_suite(suite: str | Path | Mapping[str, Any], registry: Registry) -> Suite:
    """A suite given by path, by name or as data.

    Raises ``UsageError`` with every problem; where the form of some entries is wrong, the names and parameters of
    all others are looked at too.
    """
    try:
        if isinstance(suite, Mapping):
            return suite_of(suite)
        return load_suite(resolve_suite(suite, registry))
    except SuiteError as error:
        if error.rest is None:
            raise
        resolver = Resolver(error.rest, registry)
        resolver.cells(resolver.tasks(), seeds=1)
        raise UsageError(in_order([*error.problems, *resolver.problems])) from error


class Resolver:
    """Names and parameters of a suite become specifications and methods; problems are collected with their places."""

    def __init__(self, suite: Suite, registry: Registry) -> None:
        self.suite = suite
        self.registry = registry
        self.problems: list[Problem] = []
        self._defaults: dict[str, dict[str, Any]] = {}

    # --- tasks --------------------------------------------------------------------------------------------------------

    def tasks(self) -> list[PlannedTask]:
        return [task for index in range(len(self.suite.tasks)) if (task := self._task(index)) is not None]

    def _task(self, index: int) -> PlannedTask | None:
        choice, document = self.suite.tasks[index], self.suite.document
        loc: yamlio.Loc = ("tasks", index)
        scale = choice.scale or self.suite.scale
        at_scale: yamlio.Loc = ("scale",) if scale and not choice.scale else (*loc, "scale" if scale else "task")
        budget = yamlio.merge(document.at(("budget",)), document.at((*loc, "budget")))
        at = (*loc, "task")
        try:
            name = self.registry.catalog.find(choice.task).name
            at = at_scale  # what has no place of its own from here on is about the scale
            spec = self.registry.task(name, scale, document.at((*loc, "override")), budget)
        except UsageError as error:
            self.problems += self._placed(error, at)
            return None
        unknown = [unit for unit in budget.data if unit not in UNITS]
        own = self._own_limits(choice, spec) if unknown else set()
        for unit in unknown:
            if unit not in own:
                message = f"{spec.name} does not limit '{unit}', and no meter has this name"
                hint = did_you_mean(unit, sorted(UNITS | own), label="units")
                self.problems.append(Problem(budget.place((unit,), key=True), message, hint))
        identity = spec.identity()
        version = self.registry.tracks[spec.track].version
        return PlannedTask(index, choice, spec, identity, canonical_json(identity), digest(identity), version)

    def _own_limits(self, choice: TaskChoice, spec: TaskSpec) -> set[str]:
        """Units that the task limits before any budget of the suite."""
        override = choice.override.get("limits")
        units = set(override) if isinstance(override, dict) else set()
        return units | set(self.registry.task(spec.name, spec.scale).limits)

    def _placed(self, error: UsageError, loc: yamlio.Loc) -> list[Problem]:
        """Problems that know no place stand where the suite names what they are about."""
        place = self.suite.place(*loc)
        return [Problem(problem.place or place, problem.message, problem.hint) for problem in error.problems]

    # --- methods ------------------------------------------------------------------------------------------------------

    def cells(self, tasks: list[PlannedTask], seeds: int) -> list[tuple[PlannedTask, PlannedMethod]]:
        """Every method with every set of its parameters on every task that it is for, by task, then method."""
        by_task: dict[int, list[PlannedMethod]] = {task.index: [] for task in tasks}
        total = 0
        for index, choice in enumerate(self.suite.methods):
            fitting = self._fitting(index, choice, tasks)
            total += math.prod(len(values) for values in choice.grid.values()) * len(fitting) * seeds
            if total > MAX_JOBS:
                place = self.suite.place("methods", index, "grid")
                message = f"up to here the suite asks for {total:,} jobs, but a plan has at most {MAX_JOBS:,}"
                self.problems.append(Problem(place, message, "shorten the grid or the seeds, or split the suite"))
                break
            variants: dict[str, list[PlannedMethod]] = {}
            for task, method in fitting:
                if method.key not in variants:
                    variants[method.key] = self._variants(index, choice, method)
                by_task[task.index] += variants[method.key]
        return [(task, planned) for task in tasks for planned in by_task[task.index]]

    def _fitting(self, index: int, choice: MethodChoice, tasks: list[PlannedTask]) -> list[tuple[PlannedTask, Method]]:
        """The tasks that an entry of the suite is for, each with the method that its name means there."""
        loc = ("methods", index, "method")
        known = self.registry.methods
        if not any(choice.method in (key, key.partition("/")[2]) for key in known):
            try:
                self.registry.method(choice.method)
            except UsageError as error:
                self.problems += self._placed(error, loc)
            return []
        wanted = self._wanted(index, choice, tasks)
        fitting: list[tuple[PlannedTask, Method]] = []
        for task in wanted:
            name = choice.method if "/" in choice.method else f"{task.spec.track}/{choice.method}"
            if name in known and self.registry.supports(known[name], task.spec):
                fitting.append((task, known[name]))
        if choice.tasks is None:
            if wanted and not fitting and self._complete(wanted):
                message = f"the method '{choice.method}' supports no task of this suite"
                self.problems.append(Problem(self.suite.place(*loc), message, self._supported(choice.method)))
            return fitting
        for task in wanted:
            if all(task is not other for other, _ in fitting):
                place = self._asked(index, choice, task)
                message = f"the method '{choice.method}' does not support the task {task.spec.name}"
                self.problems.append(Problem(place, message, self._supported(choice.method)))
        return fitting

    def _wanted(self, index: int, choice: MethodChoice, tasks: list[PlannedTask]) -> list[PlannedTask]:
        if choice.tasks is None:
            return tasks
        chosen: list[PlannedTask] = []
        for position, name in enumerate(choice.tasks):
            matching = [task for task in tasks if name in _names(task)]
            chosen += [task for task in matching if task not in chosen]
            if not matching and self._complete(tasks):  # else the task itself is the problem
                place = self.suite.place("methods", index, "tasks", position)
                hint = did_you_mean(name, [task.spec.name for task in tasks], label="tasks of this suite")
                self.problems.append(Problem(place, f"the suite has no task '{name}'", hint))
        return chosen

    def _complete(self, tasks: list[PlannedTask]) -> bool:
        """Whether these are all tasks of the suite, so that what fits none of them is wrong."""
        return self.suite.whole and len(tasks) == len(self.suite.tasks)

    def _asked(self, index: int, choice: MethodChoice, task: PlannedTask) -> str:
        names = _names(task)
        position = next((at for at, name in enumerate(choice.tasks or []) if name in names), 0)
        return self.suite.place("methods", index, "tasks", position)

    def _supported(self, name: str) -> str:
        methods = [m for m in self.registry.methods.values() if name in (m.key, m.slug)]
        return "; ".join(
            f"{m.key} is for {', '.join(m.card.tasks)}".replace("for *", "for every task") for m in methods
        )

    def _variants(self, index: int, choice: MethodChoice, method: Method) -> list[PlannedMethod]:
        loc = ("methods", index)
        if method.key not in self._defaults:
            self._defaults[method.key] = method.canonical({})
        defaults = self._defaults[method.key]
        document = self.suite.document
        found = len(self.problems)
        base = self._canonical(method, document.at((*loc, "params"))) if choice.params else defaults
        columns: list[list[tuple[str, Any]]] = []
        for name, values in choice.grid.items():
            at = (*loc, "grid", name)
            if name not in defaults:
                self.problems.append(no_parameter(method, name, document.place(at, key=True)))
                continue
            checked = [
                self._canonical(method, document.at((*at, position)).under(name)) for position in range(len(values))
            ]
            columns.append([(name, value[name]) for value in checked if value is not None])
        if base is None or len(self.problems) > found:
            return []
        variants: list[PlannedMethod] = []
        for combination in product(*columns):
            params = {**base, **dict(combination)}
            variants.append(PlannedMethod(index, method, params, label_of(method.slug, params, defaults)))
        return variants

    def _canonical(self, method: Method, document: Document) -> dict[str, Any] | None:
        try:
            return method.canonical(document)
        except UsageError as error:
            self.problems += error.problems
            return None


def _names(task: PlannedTask) -> set[str]:
    """What a suite may call one of its tasks."""
    spec = task.spec
    names = {spec.name, spec.name.partition("/")[2]}
    return names | {f"{name}@{spec.scale}" for name in names}


def _leaves(value: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, child in value.items():
        if isinstance(child, dict):
            yield from _leaves(child, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", child


def _brackets(values: Mapping[str, Any]) -> str:
    shown = ", ".join(f"{name}={_short(value)}" for name, value in values.items())
    return f"({shown})" if shown else ""


def _short(value: Any) -> str:
    if isinstance(value, float) and value.is_integer() and abs(value) < 1e15:
        return str(int(value))
    return value if isinstance(value, str) else canonical_json(value)


def label_of(slug: str, params: Mapping[str, Any], defaults: Mapping[str, Any]) -> str:
    """``taid(t_start=0.4)``: the method with the parameters that differ from its defaults, in the method's order."""
    return slug + _brackets({name: params[name] for name in defaults if params[name] != defaults[name]})


def extended(label: str, params: Mapping[str, Any]) -> str:
    """A label with further parameters.

    >>> extended("taid", {"t_start": 0.4}), extended("taid(t_start=0.4)", {"t_end": 1.0})
    ('taid(t_start=0.4)', 'taid(t_start=0.4, t_end=1)')
    """
    if not params:
        return label
    more = _brackets(params)
    return f"{label[:-1]}, {more[1:]}" if label.endswith(")") else label + more
