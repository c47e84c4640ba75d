"""Extensions: modules with ``kdbench_*`` hooks, each imported on its own, so that one that fails stops no other."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from functools import partial
from pkgutil import resolve_name
from typing import Any

import pluggy
from pluggy import PluginValidationError

from kdbench.discovery.modules import load_module
from kdbench.discovery.records import Broken
from kdbench.discovery.sources import Candidate, ObjectCandidate
from kdbench.errors import did_you_mean
from kdbench.hookspecs import PROJECT, ContributionHooks, EventHooks

CORE = ("kdbench.tracks", "kdbench.shipped")
"""Parts of kdbench that are extensions like any other, and light to import."""
EXECUTORS = ("kdbench.schedule.local", "kdbench.schedule.ray")
"""As :data:`CORE`, but imported only where a run needs an executor."""


def new_manager() -> pluggy.PluginManager:
    """A manager that knows the hooks of extensions; those of methods are not among them."""
    manager = pluggy.PluginManager(PROJECT)
    manager.add_hookspecs(ContributionHooks)
    manager.add_hookspecs(EventHooks)
    return manager


def register(manager: pluggy.PluginManager, candidate: Candidate | ObjectCandidate) -> Broken | None:
    """Import an extension and register it. Returns why it cannot be used, or None."""
    load: Callable[[], Any]
    if isinstance(candidate, ObjectCandidate):
        place, name = candidate.source, candidate.value
        load = partial(resolve_name, candidate.value)
    else:
        place, name = str(candidate.path), candidate.module or str(candidate.path)
        load = partial(load_module, candidate.path, candidate.module)

    def broken(reason: str, hint: str = "", line: int | None = None) -> Broken:
        return Broken(f"{place}:{line}" if line else place, reason, hint, candidate.source)

    if manager.has_plugin(name):
        return None
    try:
        plugin = load()
    except (Exception, SystemExit) as error:  # noqa: BLE001  # whatever a stranger's module does while it is imported
        return broken(f"importing it raised {type(error).__name__}: {error}", "", _line_in(error, place))
    try:
        manager.register(plugin, name)
        manager.check_pending()
    except (PluginValidationError, ValueError) as error:
        from kdbench.discovery.hooks import specifications

        unknown = _unknown_hook(manager, plugin)
        if manager.has_plugin(name):
            manager.unregister(name=name)
        hint = did_you_mean(unknown, [hook for hook in specifications() if hook.startswith("kdbench_")])
        reason = f"{unknown} is no hook of an extension" if unknown else " ".join(str(error).split())
        return broken(reason, hint if unknown else "")
    if not manager.get_hookcallers(plugin):
        manager.unregister(name=name)
        return broken("it implements no hook of kdbench", "decorate its hooks with @kdbench.hookimpl")
    return None


def _unknown_hook(manager: pluggy.PluginManager, plugin: Any) -> str:
    """Name of the first hook of a plugin that has no specification; empty where all have one."""
    callers = manager.get_hookcallers(plugin) or []
    return next((caller.name for caller in callers if not caller.has_spec()), "")


def _line_in(error: BaseException, place: str) -> int | None:
    """Line of the last frame of an error that lies in a file."""
    import traceback

    if isinstance(error, SyntaxError) and error.filename == place:
        return error.lineno
    frames = traceback.extract_tb(error.__traceback__)
    return next((frame.lineno for frame in reversed(frames) if frame.filename == place), None)


def contributions(manager: pluggy.PluginManager, hook: str, **arguments: Any) -> Iterator[tuple[str, Any | Broken]]:
    """What each extension returns from a hook, with the extension's name; or why it failed."""
    caller = getattr(manager.hook, hook)
    for implementation in caller.get_hookimpls():
        name, plugin = implementation.plugin_name, implementation.plugin
        others = [other for other in manager.get_plugins() if other is not plugin]
        try:
            for result in manager.subset_hook_caller(hook, others)(**arguments):
                yield name, result
        except Exception as error:  # noqa: BLE001  # a stranger's code; its failure is reported in its place
            reason = f"its hook {hook} raised {type(error).__name__}: {error}"
            yield name, Broken(_place_of(plugin, name), reason, "", name)


def _place_of(plugin: Any, name: str) -> str:
    """File of a registered plugin, as far as it is known."""
    module = plugin if hasattr(plugin, "__file__") else sys.modules.get(type(plugin).__module__)
    return str(getattr(module, "__file__", None) or name)
