"""Suites: what to compare, as a YAML file; read, extended and validated, with the place of every value.

A suite may extend others (``extends: base.yaml`` or a list, relative to the file). Later files win and the file itself
wins over all: mappings merge deeply (see :func:`kdbench.yamlio.merge`), everything else is replaced, and
``methods+:`` and ``tasks+:`` append to what is inherited instead. ``name`` and ``description`` are not inherited.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PrivateAttr, ValidationError, model_validator

from kdbench import yamlio
from kdbench.errors import Problem, UsageError, did_you_mean, in_order
from kdbench.job import Resources
from kdbench.paths import default_tracking_uri
from kdbench.quantities import byte_size, duration
from kdbench.spec import SCALES, Scale
from kdbench.yamlio import Document, Loc, found

if TYPE_CHECKING:
    from kdbench.registry import Registry

DEFAULT_SEEDS = 5
MAX_SEEDS = 10_000
MAX_ENTRIES = 10_000
"""Methods or tasks of a suite; files that extend each other could multiply them without end."""
APPENDING = ("methods", "tasks")
"""Keys that take a ``+`` to append to what is inherited."""
_OWN = ("name", "description", "extends")

Amount = Annotated[float, Field(gt=0, strict=True, allow_inf_nan=False)]
Text = Annotated[str, Field(min_length=1, max_length=200)]


class SuiteModel(BaseModel):
    """Base of the parts of a suite: no unknown keys, no guessing (``"3"`` is no number, ``true`` neither)."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, protected_namespaces=())


def _memory(value: Any) -> Any:
    return None if value is None else byte_size(value)


class SuiteResources(Resources):
    """Resources as a suite writes them: sizes with units. Fields of a method win over those of its task, and those
    over the suite's."""

    model_config = ConfigDict(strict=True)

    memory: Annotated[int | None, BeforeValidator(_memory)] = None
    """Main memory after which a job ends as ``oom``: ``4GiB``, ``10 GB`` or bytes."""
    gpu_memory: Annotated[int | None, BeforeValidator(_memory)] = None
    """GPU memory that must be free on each of its devices; alone, without ``gpus``, a part of one device."""


class TaskChoice(SuiteModel):
    """A task of a suite: ``vision/digits-gap``, ``llm/instruct@cpu`` or a mapping."""

    task: Text
    """``track/name``; the track may be left out where the name is unique."""
    scale: Scale | None = None
    """Wins over the suite's ``scale``; also written ``task@scale``."""
    override: dict[str, Any] = {}
    """Fields of the task to change: teacher, student, data, sizes, recipe."""
    budget: dict[str, Amount] = {}
    """Limits that replace the suite's and the task's own, such as ``steps``."""
    resources: SuiteResources = SuiteResources()
    """What each job on it occupies; what is left out is the suite's."""

    @model_validator(mode="before")
    @classmethod
    def _read(cls, value: Any) -> Any:
        value = {"task": value} if isinstance(value, str) else value
        if not isinstance(value, dict) or not isinstance(value.get("task"), str) or "@" not in value["task"]:
            return value
        name, _, scale = value["task"].partition("@")
        if value.get("scale") not in (None, scale):
            raise ValueError(f"the scale is given twice: {scale!r} after the '@' and {value['scale']!r}")
        return {**value, "task": name, "scale": scale}


class MethodChoice(SuiteModel):
    """A method of a suite: ``taid``, ``llm/taid`` or a mapping."""

    method: Text
    """``slug``, found in the track of each task, or ``track/slug``."""
    params: dict[str, Any] = {}
    """Parameters that differ from the method's defaults."""
    grid: dict[str, Annotated[list[Any], Field(min_length=1)]] = {}
    """Parameters with lists of values: every combination is a method of its own."""
    tasks: Annotated[list[Text], Field(min_length=1)] | None = None
    """Tasks of the suite to run it on (as written there, or ``track/name``); null: all that it supports."""
    resources: SuiteResources = SuiteResources()
    """What each of its jobs occupies; what is left out is the task's or the suite's."""

    @model_validator(mode="before")
    @classmethod
    def _read(cls, value: Any) -> Any:
        return {"method": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _disjoint(self) -> MethodChoice:
        both = sorted(set(self.params) & set(self.grid))
        if both:
            raise ValueError(f"{', '.join(both)} cannot stand both in params and in grid")
        return self


def _timeout(value: Any) -> Any:
    return None if value is None else duration(value)


class ExecutorChoice(SuiteModel):
    """Where jobs run: a name, or a mapping with the name and the executor's own options."""

    model_config = ConfigDict(extra="allow")

    name: Text = "local"
    """``local``, ``ray`` or what an extension contributes."""

    @model_validator(mode="before")
    @classmethod
    def _read(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value

    @property
    def options(self) -> dict[str, Any]:
        """What the executor's factory receives, such as ``workers``."""
        return dict(self.model_extra or {})


class Tracking(SuiteModel):
    """Experiment tracking."""

    mlflow: bool | Text = True
    """true: MLflow in ``<results>/mlflow.db``; false: none; or an MLflow tracking URI."""

    @model_validator(mode="before")
    @classmethod
    def _read(cls, value: Any) -> Any:
        return {"mlflow": value} if isinstance(value, bool | str) else value


def _seeds(value: Any) -> Any:
    expected = "a number of seeds such as 5, or a list such as [0, 1, 2], was expected"
    if isinstance(value, list):
        if not value:
            raise ValueError(f"the list is empty; {expected}")
        return value
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError(f"{expected}, but this is {found(value)}")
    if not 1 <= value <= MAX_SEEDS:
        raise ValueError(f"the number of seeds must be at least 1 and at most {MAX_SEEDS:,}, but is {value}")
    return list(range(value))


def _several(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


Several = BeforeValidator(_several)


class Suite(SuiteModel):
    """Tasks x methods x parameters x seeds, with a budget and resources."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$", max_length=100)] = "suite"
    """What leaderboards call it; default: the file's name without its ending."""
    description: str = ""
    """A sentence for people."""
    extends: Annotated[list[Text], Several] = []
    """Suites to build on: one path or a list, relative to this file; later ones win, this file wins over all."""
    scale: Scale | None = None
    """Of the tasks that name none; default: ``cpu``."""
    tasks: list[TaskChoice] = Field(min_length=1)
    """What to solve; replaces what is inherited (``tasks+`` appends to it)."""
    methods: list[MethodChoice] = Field(min_length=1)
    """What to compare, each on every task that it supports; replaces what is inherited (``methods+`` appends)."""
    seeds: Annotated[list[Annotated[int, Field(ge=0, lt=2**63)]], BeforeValidator(_seeds)] = Field(
        default_factory=lambda: list(range(DEFAULT_SEEDS))
    )
    """A number n (the seeds 0 to n - 1) or a list of seeds; default 5."""
    budget: dict[str, Amount] = {}
    """Limits that replace the tasks' own, such as ``steps``."""
    resources: SuiteResources = SuiteResources()
    """What each job occupies."""
    executor: ExecutorChoice = ExecutorChoice()
    """Where jobs run."""
    tracking: Tracking = Tracking()
    """Experiment tracking."""
    timeout: Annotated[float | None, BeforeValidator(_timeout)] = None
    """Wall-clock time after which a job is ended: ``10m``, ``1h30m`` or seconds; null: the task's own."""
    heartbeat: Annotated[float | None, BeforeValidator(_timeout)] = 600
    """Time without any sign of life (a step, output, processor time) after which a job is ended; null: never."""
    checkpoint_every: Annotated[float | None, BeforeValidator(_timeout)] = 600
    """Time between two checkpoints from which an interrupted job goes on; null: it starts anew."""
    keep: Annotated[list[Literal["model"]], Several] = []
    """Artifacts of each job to keep: ``model``."""

    _document: Document = PrivateAttr()
    _whole: bool = PrivateAttr(default=True)

    @property
    def whole(self) -> bool:
        """False for what is left of a suite whose other entries are wrong (:attr:`SuiteError.rest`)."""
        return self._whole

    @property
    def document(self) -> Document:
        """The data after extension, with the place of every value in the file that wrote it."""
        return self._document

    @property
    def path(self) -> Path:
        return self._document.path

    def place(self, *loc: str | int, key: bool = False) -> str:
        """``file:line:column`` of a value, such as ``suite.place("methods", 2, "params", "alpha")``."""
        return self._document.place(loc, key=key)

    def tracking_uri(self, results: Path) -> str | None:
        """The MLflow tracking URI, or None where tracking is off; a database in ``results`` by default."""
        if isinstance(self.tracking.mlflow, str):
            return self.tracking.mlflow
        return default_tracking_uri(results) if self.tracking.mlflow else None


class SuiteError(UsageError):
    """A suite of the wrong form."""

    def __init__(self, problems: list[Problem], rest: Suite | None) -> None:
        super().__init__(problems)
        self.rest = rest
        """The suite without its wrong entries, in which names may still be wrong; None where too little is left."""


def load_suite(path: Path) -> Suite:
    """Read, extend and validate a suite. Raises ``UsageError`` with every problem of the files' form."""
    return _validated(_Extender().load(path))


def suite_of(data: Mapping[str, Any], source: str = "suite") -> Suite:
    """A suite of data in memory; problems are placed at ``source``. Raises ``UsageError``."""
    if "extends" in data:
        raise UsageError("only suites in files can extend others", place=source)
    return _validated(_settled(Document.of(dict(data), source)))


def resolve_suite(name: str | Path, registry: Registry) -> Path:
    """Path of a suite that is given by path or by name. Raises ``UsageError`` for a name that nothing has."""
    path, text = Path(name), str(name)
    known = registry.suites()
    if path.exists() and (path.is_file() or text not in known):
        return path
    if text in known:
        return known[text]
    if path.suffix in (".yaml", ".yml") or path.name != text:
        return path  # a path, whatever is wrong with it: reading it says so
    hint = did_you_mean(text, list(known), label="suites") if known else "give the path of a YAML file"
    raise UsageError(f"no suite has the name '{text}', and there is no such file", hint=hint)


def parse_seeds(text: str) -> list[int]:
    """Seeds from a command line: ``3`` (a number of seeds) or ``0,1,7`` (these seeds; ``7,`` for one)."""
    parts = [part.strip() for part in text.split(",")]
    numbers = parts[:-1] if len(parts) > 1 and not parts[-1] else parts
    if not all(re.fullmatch(r"[0-9]{1,18}", part) for part in numbers):
        message = f"{text!r} is neither a number of seeds nor a list of seeds"
        raise UsageError(message, place="--seeds", hint="write --seeds 3 or --seeds 0,1,7")
    values = [int(part) for part in numbers]
    try:
        seeds: list[int] = _seeds(values if len(parts) > 1 else values[0])
    except ValueError as error:
        raise UsageError(str(error), place="--seeds") from error
    return seeds


class _Extender:
    """Files that extend each other, each read once."""

    def __init__(self) -> None:
        self.done: dict[Path, Document] = {}

    def load(self, path: Path) -> Document:
        return _settled(self._extended(path, ()))

    def _extended(self, path: Path, chain: tuple[Path, ...]) -> Document:
        """A file merged over what it extends; keys with ``+`` that found nothing to append to stay."""
        identity = path.resolve()
        if identity in self.done:
            return self.done[identity]
        own = yamlio.load(path)
        problems: list[Problem] = []
        total = Document({}, path, own.places)
        for parent, place in self._parents(own, problems):
            around = [*chain, path]
            circle = [file.resolve() for file in around]
            if parent.resolve() in circle:
                since = around[circle.index(parent.resolve()) :]
                names = " -> ".join(file.name for file in (*since, parent))
                problems.append(
                    Problem(place, f"suites extend each other in a circle: {names}", "remove one 'extends'")
                )
                continue
            try:
                inherited = self._extended(parent, (*chain, path))
            except UsageError as error:
                problems.extend(error.problems)
                continue
            total = _over(total, _without(inherited, _OWN), problems)
        total = _over(total, own, problems)
        if problems:
            raise UsageError(list(dict.fromkeys(problems)))
        self.done[identity] = total
        return total

    @staticmethod
    def _parents(own: Document, problems: list[Problem]) -> Iterator[tuple[Path, str]]:
        value = own.data.get("extends", [])
        entries: list[tuple[Any, Loc]] = [(value, ("extends",))]
        if isinstance(value, list):
            entries = [(entry, ("extends", index)) for index, entry in enumerate(value)]
        for entry, loc in entries:
            place = own.place(loc)
            if not isinstance(entry, str) or not entry or "\0" in entry:
                message = f"'extends' must be a path or a list of paths, but holds {found(entry)}"
                problems.append(Problem(place, message, "write extends: base.yaml"))
                continue
            parent = own.path.parent / Path(entry).expanduser()
            if parent.is_file():
                yield parent, place
                continue
            near = (
                [p.name for p in parent.parent.iterdir() if p.suffix in (".yaml", ".yml")]
                if parent.parent.is_dir()
                else []
            )
            hint = did_you_mean(parent.name, sorted(near), label="files there") if near else f"looked for {parent}"
            problems.append(Problem(place, f"there is no file '{entry}' to extend", hint))


def _without(document: Document, keys: tuple[str, ...]) -> Document:
    data = {key: value for key, value in document.data.items() if key not in keys}
    return Document(data, document.path, document.places)


def _over(base: Document, over: Document, problems: list[Problem]) -> Document:
    """``over`` merged into ``base``, with the keys that append."""
    joined: dict[str, Document] = {}
    drop: list[str] = []
    for key in APPENDING:
        plus = f"{key}+"
        if plus not in over.data:
            drop += [plus] if key in over.data else []
            continue
        more = over.at((plus,))
        if key in over.data:
            problems.append(
                Problem(over.place((plus,), key=True), f"'{key}' and '{plus}' stand in one file", "keep one")
            )
        elif not isinstance(more.data, list):
            problems.append(Problem(over.place((plus,)), f"'{plus}' must be a list, but is {found(more.data)}"))
        else:
            target = key if key in base.data else plus
            joined[target] = yamlio.concatenate(base.at((target,)), more) if target in base.data else more
            drop.append(plus)
    # another executor shares no options with the inherited one
    replaced = ("executor",) if _executor(over) not in (None, _executor(base)) else ()
    merged = yamlio.merge(_without(base, (*drop, *replaced)), _without(over, tuple(drop)))
    for key, document in joined.items():
        merged.data[key], merged.places.children[key] = document.data, document.places
    for key in (*APPENDING, *(f"{key}+" for key in APPENDING)):
        entries = merged.data.get(key)
        if isinstance(entries, list) and len(entries) > MAX_ENTRIES:
            message = f"with what it extends, this suite has more than {MAX_ENTRIES:,} entries in '{key}'"
            raise UsageError(message, place=over.place((key,)), hint="use 'grid' for many parameters")
    return merged


def _executor(document: Document) -> Any:
    value = document.data.get("executor")
    return value.get("name") if isinstance(value, dict) else value


def _settled(document: Document) -> Document:
    """Keys that append and found nothing to append to are what they append."""
    data = dict(document.data)
    children = dict(document.places.children)
    for key in APPENDING:
        if f"{key}+" in data:
            data[key], children[key] = data.pop(f"{key}+"), children.pop(f"{key}+")
    places = yamlio.Places(document.places.value, document.places.key, children)
    return Document(data, document.path, places)


def _validated(document: Document) -> Suite:
    problems: list[Problem] = []
    rest: Suite | None = None
    try:
        suite = Suite.model_validate(document.data)
    except ValidationError as error:
        problems = yamlio.problems_of(error, document, model=Suite)
        rest = _rest(document, error)
    places = {problem.place for problem in problems}
    problems += [odd for odd in _not_finite(document.data, (), document) if odd.place not in places]
    if problems:
        raise SuiteError(in_order(problems), rest)
    if "name" not in document.data:
        stem = re.sub(r"[^A-Za-z0-9_.-]+", "-", document.path.stem).lstrip("_.-")
        suite = suite.model_copy(update={"name": stem or "suite"})
    suite._document = document
    return suite


def _rest(document: Document, error: ValidationError) -> Suite | None:
    """What is left of a suite without the keys, methods and tasks that are wrong."""
    wrong = {tuple(details["loc"]) for details in error.errors(include_url=False)}
    data, children = dict(document.data), dict(document.places.children)
    for key in {loc[0] for loc in wrong if loc and loc[0] not in APPENDING}:
        data.pop(key, None)
    for key in APPENDING:
        entries = document.at((key,))
        if not isinstance(entries.data, list):
            return None
        bad = {loc[1] for loc in wrong if len(loc) > 1 and loc[0] == key}
        kept = [entries.at((index,)) for index in range(len(entries.data)) if index not in bad]
        data[key] = [entry.data for entry in kept]
        places = entries.places
        children[key] = yamlio.Places(places.value, places.key, {i: entry.places for i, entry in enumerate(kept)})
    try:
        rest = Suite.model_validate(data)
    except ValidationError:
        return None
    rest._document = Document(data, document.path, replace(document.places, children=children))
    rest._whole = False
    return rest


def _not_finite(value: Any, loc: Loc, document: Document) -> Iterator[Problem]:
    if isinstance(value, dict | list):
        for part, child in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _not_finite(child, (*loc, part), document)
    elif isinstance(value, float) and not math.isfinite(value):
        message = f"{value!r} is no finite number, so it has no place in the identity of a job"
        yield Problem(document.place(loc), message, "leave the key out, or write null where the value is optional")


__all__ = [
    "DEFAULT_SEEDS",
    "SCALES",
    "ExecutorChoice",
    "MethodChoice",
    "Suite",
    "SuiteError",
    "TaskChoice",
    "Tracking",
    "load_suite",
    "parse_seeds",
    "resolve_suite",
    "suite_of",
]
