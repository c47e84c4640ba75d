"""``kdbench new method``: a method that trains as it is written, its test and a suite with its rivals."""

from __future__ import annotations

import os
import shlex
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from kdbench.discovery.sources import BUILT_IN
from kdbench.errors import UsageError
from kdbench.paths import drop_in_folders
from kdbench.scaffold import names, templates
from kdbench.scaffold.writing import write_new

if TYPE_CHECKING:
    from kdbench.registry import Registry
    from kdbench.track import Track

Style = Literal["loss", "loop"]
"""How a method trains: by a loss that ``task.fit`` minimises, or in a loop of its own."""


@dataclass(frozen=True)
class Written:
    """What was written, and what to do with it."""

    files: tuple[Path, ...]
    commands: tuple[tuple[str, str], ...]
    """Commands to go on with, each with what it does."""


def new_method(
    registry: Registry,
    name: str,
    track: str,
    *,
    style: Style = "loss",
    folder: Path = Path(),
    tests: Path | None = None,
) -> Written:
    """Write ``NAME.py`` into ``folder``, and ``test_NAME.py`` into ``tests`` (default: the same folder).

    A file of its own also gets ``NAME.yaml``, a suite with its rivals; what goes into a package does not. Raises
    ``UsageError`` for a name that cannot be used or is taken, a track without templates, and files that are there.
    """
    names.require_track(track, registry)
    templates.require_templates(registry.tracks[track], list(registry.tracks.values()))
    names.require_method(name, registry, track)
    package = package_of(folder)
    if not package:
        names.require_unused(name)  # pytest lets the test's folder come first, so that it would hide the other
    if tests is None:
        _require_mixed(folder)
        tests = folder
    method, test, suite = folder / f"{name}.py", tests / f"test_{name}.py", folder / f"{name}.yaml"
    found = package.split(".")[0] if package else ""
    files = method_files(
        registry.tracks[track],
        name,
        style,
        package=package,
        load="" if package else Path(os.path.relpath(method, tests)).as_posix(),
        ours=found == BUILT_IN,
    )
    wanted = {method: files["method"], test: files["test"]}
    commands = [
        (command("kdbench", "test-method", method), "whether it keeps the contract"),
        (command("pytest", test, "--kdbench-method", method), "the same as tests, with its own"),
    ]
    if package:
        claims = ("kdbench", "claims", f"{track}/{name}", "--run", *(() if found == BUILT_IN else ("--plugin", method)))
        commands.append((command(*claims), "whether it is better than plain distillation"))
    else:
        wanted[suite] = files["suite"]
        commands += [
            (command("kdbench", "run", suite, "--plugin", method), "it beside its rivals"),
            (command("kdbench", "leaderboard", "--suite", name), "who won"),
        ]
    write_new(wanted)
    return Written(tuple(wanted), tuple(commands))


def method_files(
    track: Track, name: str, style: Style, *, package: str = "", load: str = "", ours: bool = False
) -> dict[str, str]:
    """The texts of a method, its test and its suite.

    The test imports the module from ``package``, or loads the path ``load`` relative to its own folder: imports of
    a file that is in no package are sorted one way or another depending on where a linter is started. ``ours``: the
    package is that of kdbench.
    """
    context: dict[str, Any] = {
        "slug": name,
        "title": names.title_of(name),
        "params": names.params_of(name),
        "track": track.name,
        "style": style,
        "load": load,
        "package": package,
        "ours": ours,
        "network": "model" if style == "loss" else "student",
        "keep": "return " if style == "loss" else "parts = ",
    }
    parts = {"method": "method.py.jinja", "test": "test.py.jinja", "suite": "suite.yaml.jinja"}
    return {part: templates.render(template, context, track) for part, template in parts.items()}


def package_of(folder: Path) -> str:
    """The package that a folder is, such as ``kdbench_methods.vision``; empty where it is none."""
    parts: list[str] = []
    place = folder.resolve()
    while (place / "__init__.py").is_file():
        parts.insert(0, place.name)
        place = place.parent
    return ".".join(parts)


def _require_mixed(folder: Path) -> None:
    """Raise ``UsageError`` where a test would be taken for a plugin."""
    built_in = find_spec(BUILT_IN)
    dedicated = [*drop_in_folders()[0], *map(Path, (built_in and built_in.submodule_search_locations) or ())]
    here = folder.resolve()
    for place in dedicated:
        if here.is_relative_to(place.resolve()):
            hint = "say with --tests where its test goes"
            raise UsageError("only methods belong into this folder", place=str(folder), hint=hint)


def command(*words: str | Path) -> str:
    """A command as a shell needs it."""
    return shlex.join(str(word) for word in words)
