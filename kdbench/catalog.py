"""Tasks of all tracks: read from their YAML files, merged and validated into specifications.

A task is merged from the ``defaults`` of its file, the task itself, one of its ``scales``, the overrides of a suite
and the limits of its budget, in this order: mappings merge deeply, lists and scalars replace, and so does a mapping
of another ``kind`` (a student of ``kind: hf`` inherits nothing from one of ``kind: net``). Every value keeps its
place, so that what is wrong is reported where it was written. A file that an extension adds says with ``track:`` to
which track its tasks belong, and builds on the defaults of that track's own file.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from pkgutil import resolve_name
from typing import TYPE_CHECKING, Any

from kdbench.discovery.records import Broken
from kdbench.errors import Problem, UsageError, did_you_mean
from kdbench.track import Track
from kdbench.yamlio import Document, load, merge

if TYPE_CHECKING:
    from kdbench.spec import TaskSpec

DEFAULT_SCALE = "cpu"
FIXED = ("name", "family", "scale")
"""What makes a task this task: no suite may override it."""


@dataclass(frozen=True)
class TaskEntry:
    """A task as its YAML file announces it, not yet validated."""

    name: str
    """``track/name``."""
    title: str
    family: str
    scales: tuple[str, ...]
    track: str
    place: str
    """``file:line:column`` of its key."""
    requires: tuple[str, ...] = ()
    """Packages that it needs beyond those of kdbench."""


@dataclass(frozen=True)
class _Definition:
    entry: TaskEntry
    base: Document
    """Defaults and the task, merged, without ``scales``."""
    scales: Document


class Catalog:
    """All tasks of a set of tracks. Files and tasks with flaws are listed in ``broken`` and hide no others."""

    def __init__(self, tracks: Mapping[str, Track], more: Iterable[tuple[Path, str]] = ()) -> None:
        """``more`` are further YAML files, each with the name of the extension that adds it."""
        self.tracks = dict(tracks)
        self.broken: list[Broken] = []
        self._defaults: dict[str, Document] = {}
        self._definitions: dict[str, _Definition] = {}
        self._damaged: dict[str, list[Problem]] = {}
        """What is wrong with the own files of tracks, for whoever asks for one of their tasks."""
        for track in self.tracks.values():
            self._read(track.tasks, "built-in" if track.spec.startswith("kdbench.") else f"track {track.name}", track)
        for path, source in more:
            self._read(path, source, None)

    def entries(self) -> list[TaskEntry]:
        """Every usable task, by track in the order of the tracks, then in the order of the file."""
        return [definition.entry for definition in self._definitions.values()]

    def find(self, name: str) -> TaskEntry:
        """The task ``track/name``, or ``name`` where only one track has it. Raises ``UsageError`` otherwise."""
        return self._find(name).entry

    def resolve(
        self,
        name: str,
        scale: str | None = None,
        overrides: Mapping[str, Any] | Document | None = None,
        limits: Mapping[str, float] | Document | None = None,
    ) -> TaskSpec:
        """The specification of a task at a scale (default: ``cpu``), with overrides and limits of a suite applied.

        Raises ``UsageError`` with all problems, each at the place that wrote the value.
        """
        definition = self._find(name)
        entry = definition.entry
        scale = DEFAULT_SCALE if scale is None else scale
        if scale not in entry.scales:
            hint = did_you_mean(scale, entry.scales, label="its scales")
            raise UsageError(f"the task {entry.name} has no scale {scale!r}", hint=hint)
        document = merge(definition.base, definition.scales.at((scale,)))
        if overrides is not None:
            given = _document(overrides, f"override of {entry.name}")
            fixed = [key for key in FIXED if key in given.data]
            if fixed:
                message = f"{entry.name}: {', '.join(fixed)} cannot be overridden"
                hint = "a suite picks a scale with 'scale:'" if "scale" in fixed else "remove it"
                raise UsageError([Problem(given.place((key,), key=True), message, hint) for key in fixed])
            document = merge(document, given)
        if limits is not None:
            document = merge(document, _document(limits, f"budget of {entry.name}").under("limits"))
        document = merge(document, Document.of({"name": entry.name, "scale": scale}, entry.place))
        return _validate(spec_class(self.tracks[entry.track]), document)

    def _find(self, name: str) -> _Definition:
        if name in self._definitions:
            return self._definitions[name]
        matches = [full for full in self._definitions if full.split("/", 1)[1] == name]
        if len(matches) == 1:
            return self._definitions[matches[0]]
        if matches:
            raise UsageError(f"several tracks have a task {name!r}", hint="write " + " or ".join(matches))
        for broken in self.broken:
            if name in broken.names:
                raise UsageError(
                    f"the task {name!r} cannot be used: {broken.reason}", place=broken.place, hint=broken.hint
                )
        if name.split("/")[0] in self._damaged:
            raise UsageError(self._damaged[name.split("/")[0]])
        known = list(self._definitions)
        hint = did_you_mean(name, known if "/" in name else [full.split("/", 1)[1] for full in known], label="tasks")
        raise UsageError(f"there is no task {name!r}", hint=hint)

    # --- reading ------------------------------------------------------------------------------------------------------

    def _read(self, path: Path, source: str, owner: Track | None) -> None:
        try:
            document = load(path)
            track = self._track_of(document, owner)
        except UsageError as error:
            if owner is not None:
                self._damaged[owner.name] = error.problems
            self._report(error.problems, source)
            return
        own = document.at(("defaults",))
        defaults = own if owner is not None else merge(self._defaults.get(track.name, own), own)
        self._defaults.setdefault(track.name, defaults)
        tasks = document.at(("tasks",))
        for name in tasks.data:
            try:
                self._add(name, tasks, defaults, track)
            except UsageError as error:
                self._report(error.problems, source, (name, f"{track.name}/{name}"))

    def _report(self, problems: Iterable[Problem], source: str, names: tuple[str, ...] = ()) -> None:
        self.broken += [Broken(problem.place, problem.message, problem.hint, source, names) for problem in problems]

    def _track_of(self, document: Document, owner: Track | None) -> Track:
        """The track of a file, after a check of the file's outline."""
        known = ("track", "defaults", "tasks")
        problems = [
            Problem(
                document.place((key,), key=True), f"unknown key {key!r}", did_you_mean(key, known, label="known keys")
            )
            for key in document.data
            if key not in known
        ]
        if not isinstance(document.data.get("tasks"), dict):
            message = "'tasks' must be a mapping of names to tasks"
            problems.append(Problem(document.place(("tasks",)), message))
        if not isinstance(document.at(("defaults",)).data, dict):
            problems.append(Problem(document.place(("defaults",)), "'defaults' must be a mapping"))
        name = document.data.get("track", owner.name if owner else None)
        if name is None:
            hint = "write track: NAME at its top"
            problems.append(Problem(document.place(()), "the file does not say which track its tasks belong to", hint))
        elif name not in self.tracks or (owner is not None and name != owner.name):
            hint = did_you_mean(str(name), [owner.name] if owner else list(self.tracks), label="tracks")
            problems.append(Problem(document.place(("track",)), f"there is no track {name!r} here", hint))
        if problems:
            raise UsageError(problems)
        return self.tracks[str(name)]

    def _add(self, name: str, tasks: Document, defaults: Document, track: Track) -> None:
        place = tasks.place((name,), key=True)
        key = f"{track.name}/{name}"
        if not re.fullmatch(r"[a-z0-9][a-z0-9._-]*", name):
            raise UsageError(f"{name!r} is no name of a task", place=place, hint="lower-case letters, digits, '-', '_'")
        if key in self._definitions:
            other = self._definitions[key].entry.place
            raise UsageError(f"the task {key} is defined already at {other}", place=place, hint="rename one of them")
        document = tasks.at((name,))
        if not isinstance(document.data, dict):
            raise UsageError(f"the task {name!r} must be a mapping", place=place)
        scales = document.at(("scales",))
        problems = self._scale_problems(name, document, scales)
        merged = merge(defaults, document)
        for field in ("title", "family"):
            if not isinstance(merged.data.get(field), str):
                problems.append(
                    Problem(merged.place((field,)), f"the task {name!r} needs a {field}", f"add {field}: ...")
                )
        if problems:
            raise UsageError(problems)
        data = {field: value for field, value in merged.data.items() if field != "scales"}
        requires = data.get("requires") or ()
        entry = TaskEntry(
            key,
            data["title"],
            data["family"],
            tuple(scales.data),
            track.name,
            place,
            tuple(map(str, requires)) if isinstance(requires, list | tuple) else (),
        )
        self._definitions[key] = _Definition(entry, Document(data, merged.path, merged.places), scales)

    def _scale_problems(self, name: str, document: Document, scales: Document) -> list[Problem]:
        from kdbench.spec import SCALES

        if not isinstance(scales.data, dict) or not scales.data:
            message = f"the task {name!r} needs 'scales', a mapping with at least one of {', '.join(SCALES)}"
            return [Problem(document.place(("scales",)), message)]
        problems = []
        for scale, changes in scales.data.items():
            if scale not in SCALES:
                hint = did_you_mean(scale, SCALES, label="scales")
                problems.append(Problem(scales.place((scale,), key=True), f"there is no scale {scale!r}", hint))
            elif not isinstance(changes, dict):
                message = f"the scale {scale!r} must be a mapping"
                problems.append(Problem(scales.place((scale,)), message, "write {} where nothing changes"))
        return problems


def _document(given: Mapping[str, Any] | Document, source: str) -> Document:
    return given if isinstance(given, Document) else Document.of(dict(given), source)


@lru_cache
def spec_class(track: Track) -> type[TaskSpec]:
    """The model of a track's tasks. Raises ``UsageError`` where an extension's track names none."""
    from kdbench.spec import TaskSpec

    try:
        found = resolve_name(track.spec)
    except (ImportError, AttributeError, ValueError) as error:
        raise UsageError(f"the track {track.name} cannot be used: {error}", place=track.spec) from error
    if not (isinstance(found, type) and issubclass(found, TaskSpec)):
        raise UsageError(f"the track {track.name} names {track.spec!r}, which is no subclass of TaskSpec")
    return found


def _validate(model: type[TaskSpec], document: Document) -> TaskSpec:
    from pydantic import ValidationError

    from kdbench.wording import problems_of

    try:
        text = json.dumps(document.data)
    except (TypeError, ValueError) as error:
        raise UsageError(f"a task holds plain values only: {error}", place=document.place(())) from error
    try:
        # JSON mode: lists are tuples, but texts are no numbers and truth values neither
        return model.model_validate_json(text, strict=True)
    except ValidationError as error:
        raise UsageError(problems_of(error, document, model=model)) from error
