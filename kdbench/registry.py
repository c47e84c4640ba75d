"""The registry: every method, track, task, suite and executor that this installation has.

Nothing of a method is executed here. Extensions (modules with ``kdbench_*`` hooks) are imported, each on its own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from importlib import import_module
from pathlib import Path
from stat import S_ISREG
from types import ModuleType
from typing import TYPE_CHECKING, Any

import pluggy
from pluggy import PluginValidationError

from kdbench.cards import Baseline, Paper
from kdbench.discovery.extensions import CORE, EXECUTORS, contributions, new_manager, register
from kdbench.discovery.index import Index
from kdbench.discovery.modules import load_module
from kdbench.discovery.records import Broken, Method, ParamField, Reading
from kdbench.discovery.sources import Candidate, ObjectCandidate, candidates
from kdbench.errors import ContractError, Problem, UsageError, did_you_mean
from kdbench.hookspecs import PROJECT, ContributionHooks, EventHooks, MethodHooks
from kdbench.paths import cache_root
from kdbench.track import Track

if TYPE_CHECKING:
    from kdbench.catalog import Catalog, TaskEntry
    from kdbench.params import Params
    from kdbench.spec import TaskSpec
    from kdbench.yamlio import Document

__all__ = ["Broken", "Method", "ParamField", "Registry", "discover", "load_method", "method_manager", "params_class"]


@dataclass
class Registry:
    """What was found. ``methods`` are usable; ``broken`` says what is not and why."""

    methods: dict[str, Method] = field(default_factory=dict)
    """By ``track/slug``, sorted."""
    broken: list[Broken] = field(default_factory=list)
    tracks: dict[str, Track] = field(default_factory=dict)
    manager: pluggy.PluginManager = field(default_factory=new_manager)
    """Extensions with their contribution and event hooks; no methods."""

    def method(self, name: str, track: str | None = None) -> Method:
        """The method ``track/slug``, or ``slug`` of a track, or ``slug`` where only one track has it.

        Raises ``UsageError`` for an unknown name, with suggestions, and for a method that is broken, with the reason.
        """
        full = name if "/" in name or track is None else f"{track}/{name}"
        if full in self.methods:
            return self.methods[full]
        if "/" not in full:
            matches = [method for method in self.methods.values() if method.slug == full]
            if len(matches) == 1:
                return matches[0]
            if matches:
                hint = "write " + " or ".join(method.key for method in matches)
                raise UsageError(f"several tracks have a method {name!r}", hint=hint)
        slug = full.rpartition("/")[2]
        reasons = [broken for broken in self.broken if slug in broken.names]
        if reasons:
            message = f"the method {name!r} cannot be used: "
            raise UsageError([Problem(broken.place, message + broken.reason, broken.hint) for broken in reasons])
        scope = full.partition("/")[0] if "/" in full else None
        if scope is not None and scope not in self.tracks:
            raise UsageError(
                f"there is no track {scope!r}", hint=did_you_mean(scope, list(self.tracks), label="tracks")
            )
        slugs = list({method.slug for method in self.methods.values() if scope is None or method.track == scope})
        elsewhere = [method.key for method in self.methods.values() if method.slug == slug]
        hint = f"there is {' and '.join(elsewhere)}" if elsewhere else did_you_mean(slug, slugs, label="methods")
        where = "" if scope is None else f" in the track {scope!r}"
        raise UsageError(f"there is no method {slug!r}{where}", hint=hint)

    def supports(self, method: Method, spec: TaskSpec | TaskEntry) -> bool:
        """Whether a method belongs to a task: of the same track, and the card lists ``*``, the task or its family."""
        names = {"*", spec.family, spec.name, spec.name.partition("/")[2]}
        return method.track == spec.track and not names.isdisjoint(method.card.tasks)

    @cached_property
    def catalog(self) -> Catalog:
        """Tasks of all tracks. What is wrong with their files is added to ``broken``."""
        from kdbench.catalog import Catalog

        more = [
            (Path(path), extension) for extension, paths in self._collect("kdbench_tasks", Sequence) for path in paths
        ]
        catalog = Catalog(self.tracks, more)
        self._report(*catalog.broken)
        return catalog

    def tasks(self) -> list[TaskEntry]:
        """Every task, from the YAML files alone."""
        return self.catalog.entries()

    def task(
        self,
        name: str,
        scale: str | None = None,
        overrides: Mapping[str, Any] | Document | None = None,
        limits: Mapping[str, float] | Document | None = None,
    ) -> TaskSpec:
        """The specification of a task; see :meth:`kdbench.catalog.Catalog.resolve`. Raises ``UsageError``."""
        return self.catalog.resolve(name, scale, overrides, limits)

    def suites(self) -> dict[str, Path]:
        """Suites that are found by name."""
        return {name: Path(path) for name, path in self._named("kdbench_suites").items()}

    def executors(self) -> dict[str, Callable[..., Any]]:
        """Factories of executors by name. Imports those that come with kdbench."""
        for module in EXECUTORS:
            if not self.manager.has_plugin(module):
                self.manager.register(import_module(module), module)
        return self._named("kdbench_executors")

    @cached_property
    def for_methods(self) -> pluggy.PluginManager:
        """All hooks and the extensions, without a method; made once, because that takes longer than small jobs."""
        manager = pluggy.PluginManager(PROJECT)
        for hooks in (MethodHooks, ContributionHooks, EventHooks):
            manager.add_hookspecs(hooks)
        for name, extension in self.manager.list_name_plugin():
            if extension is not None:
                manager.register(extension, name)
        return manager

    def _report(self, *broken: Broken) -> None:
        self.broken += [item for item in broken if item not in self.broken]

    def _collect(self, hook: str, kind: type[Any]) -> list[tuple[str, Any]]:
        """What extensions return from a hook, with their names; failures and wrong types go to ``broken``."""
        found = []
        for extension, result in contributions(self.manager, hook):
            if isinstance(result, Broken):
                self._report(result)
            elif not isinstance(result, kind) or isinstance(result, str):
                reason = f"its hook {hook} returned a {type(result).__name__} instead of a {kind.__name__}"
                self._report(Broken(extension, reason, "", "extension"))
            else:
                found.append((extension, result))
        return found

    def _named(self, hook: str) -> dict[str, Any]:
        """Joined mappings of a hook; of two entries of one name the first stays."""
        joined: dict[str, tuple[str, Any]] = {}
        for extension, entries in self._collect(hook, Mapping):
            for name, value in entries.items():
                if name in joined:
                    reason = f"{name!r} of its hook {hook} is taken by {joined[name][0]}"
                    self._report(Broken(extension, reason, "rename one of them", "extension", (name,)))
                else:
                    joined[name] = extension, value
        return {name: value for name, (_, value) in joined.items()}

    def _extend(self, candidate: Candidate | ObjectCandidate) -> None:
        broken = register(self.manager, candidate)
        if broken is not None:
            self._report(broken)

    def _read(self, candidate: Candidate, index: Index) -> Reading | None:
        """The reading of a usable plugin; None for helpers and for what goes to ``broken`` instead."""
        path, source = candidate.path, candidate.source
        names: tuple[str, ...] = (path.stem,)
        try:
            if not S_ISREG(path.stat().st_mode):  # reading a pipe or a device could block
                self._report(Broken(str(path), "it is no regular file", "", source, names))
                return None
            reading = index.read(path)
        except OSError as error:
            self._report(Broken(str(path), f"cannot be read: {error.strerror or error}", "", source, names))
            return None
        if reading.slug:
            names = tuple(dict.fromkeys((reading.slug, *names)))
        for flaw in reading.flaws:
            self._report(Broken(f"{path}:{flaw.line}:{flaw.column}", flaw.reason, flaw.hint, source, names))
        if reading.flaws:
            return None
        test = candidate.path.name.startswith("test_")  # tests lie beside their methods
        if reading.kind == "other" and candidate.dedicated and not test:
            hint = "write PAPER = Paper(...) at its top level, or begin the name of a helper module with '_'"
            self._report(Broken(f"{path}:1:1", "there is no card and no hook", hint, source, names))
            return None
        return reading

    def _add_tracks(self) -> None:
        origins: dict[str, str] = {}
        for extension, tracks in self._collect("kdbench_tracks", Sequence):
            for track in tracks:
                if not isinstance(track, Track):
                    reason = f"its hook kdbench_tracks returned {track!r} among its tracks"
                    self._report(Broken(extension, reason, "return kdbench.track.Track objects", "extension"))
                elif track.name in self.tracks:
                    reason = f"the track {track.name!r} is contributed by {origins[track.name]} already"
                    self._report(Broken(extension, reason, "rename one of them", "extension", (track.name,)))
                else:
                    self.tracks[track.name], origins[track.name] = track, extension

    def _add_method(self, candidate: Candidate, reading: Reading) -> None:
        """A method without flaws of its own; unknown tracks and taken names are what may still stop it."""
        card = reading.card
        assert isinstance(card, Paper | Baseline)
        names = tuple(dict.fromkeys((card.slug, candidate.path.stem)))
        if card.track not in self.tracks:
            line, column = reading.track_position
            place = f"{candidate.path}:{line}:{column}"
            hint = did_you_mean(card.track, list(self.tracks), label="tracks")
            self._report(Broken(place, f"there is no track {card.track!r}", hint, candidate.source, names))
            return
        taken = self.methods.get(card.key)
        if taken is not None:
            place = f"{candidate.path}:{reading.line}"
            reason = f"the method {card.key} is defined already in {taken.path} ({taken.source}), which is used"
            self._report(Broken(place, reason, "rename the slug of one of them", candidate.source))
            return
        self.methods[card.key] = Method(
            key=card.key,
            slug=card.slug,
            track=card.track,
            card=card,
            path=candidate.path,
            module=candidate.module,
            digest=reading.digest,
            fields=reading.fields,
            doc=reading.doc,
            source=candidate.source,
            imports=reading.imports,
            line=reading.line,
        )


def discover(plugins: Sequence[Path] = ()) -> Registry:
    """Find everything: built-in, of installed packages, dropped in, and given as files or folders in ``plugins``.

    Raises ``UsageError`` only where a path in ``plugins`` is no Python file or folder.
    """
    registry = Registry()
    for module in CORE:
        registry.manager.register(import_module(module), module)
    index = Index(cache_root() / "index.json")
    methods: list[tuple[Candidate, Reading]] = []
    seen: set[Path] = set()
    for found in candidates(index, plugins):
        if isinstance(found, Broken):
            registry._report(found)
            continue
        if isinstance(found, ObjectCandidate):
            registry._extend(found)
            continue
        if found.path in seen:  # the same file by two ways
            continue
        seen.add(found.path)
        reading = registry._read(found, index)
        if reading is not None and reading.kind == "method":
            methods.append((found, reading))
        elif reading is not None and reading.kind == "extension":
            registry._extend(found)
    index.save()
    registry._add_tracks()
    for candidate, reading in methods:
        registry._add_method(candidate, reading)
    registry.methods = dict(sorted(registry.methods.items()))
    return registry


def load_method(path: Path, module: str | None) -> ModuleType:
    """Execute a method's module; for workers. Whatever the module raises goes to the caller."""
    return load_module(path, module)


def params_class(module: ModuleType) -> type[Params]:
    """The class of a method's parameters; ``Params`` itself, without fields, where the module defines none."""
    from kdbench.params import Params

    for value in vars(module).values():
        if isinstance(value, type) and issubclass(value, Params) and value is not Params:
            return value
    return Params


def method_manager(module: ModuleType, registry: Registry) -> pluggy.PluginManager:
    """A manager for one job: all hooks, the extensions and this one method, which takes the place of the one before.

    Raises ``ContractError`` where the module's hooks do not fit the specifications.
    """
    manager = registry.for_methods
    if manager.has_plugin("method"):
        manager.unregister(name="method")
    try:
        manager.register(module, "method")
        manager.check_pending()
    except PluginValidationError as error:
        raise ContractError(" ".join(str(error).split())) from error
    if not manager.hook.train.get_hookimpls():
        raise ContractError(f"{module.__file__} has no function train decorated with @kdbench.hookimpl")
    return manager
