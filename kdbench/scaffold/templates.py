"""Templates: those of kdbench, and for what differs between tracks those that a track brings."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from kdbench.errors import UsageError

if TYPE_CHECKING:
    from jinja2 import Environment

    from kdbench.track import Track

WIDTH = 88
"""Columns of what is written: formatters that allow more leave it as it is."""


def imported(module: str, *names: str) -> str:
    """An import as formatters want it, whatever width of :data:`WIDTH` or more they are set to."""
    line = f"from {module} import {', '.join(names)}"
    if len(line) <= WIDTH:
        return line
    return "\n".join((f"from {module} import (", *(f"    {name}," for name in names), ")"))


def environment(track: Track | None = None) -> Environment:
    """Templates of kdbench as ``kdbench/NAME``, and those of ``track`` by their names."""
    from jinja2 import (
        BaseLoader,
        ChoiceLoader,
        Environment,
        FileSystemLoader,
        PackageLoader,
        PrefixLoader,
        StrictUndefined,
    )

    loaders: list[BaseLoader] = [PrefixLoader({"kdbench": PackageLoader("kdbench.scaffold")})]
    if track is not None and track.templates is not None:
        loaders.append(FileSystemLoader(track.templates))
    made = Environment(
        loader=ChoiceLoader(loaders),
        undefined=StrictUndefined,
        keep_trailing_newline=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.globals["imported"] = imported
    return made


def render(name: str, context: dict[str, Any], track: Track | None = None) -> str:
    """What a template makes of ``context``. Raises ``UsageError`` where the template is missing or wrong."""
    from jinja2 import TemplateError

    try:
        return environment(track).get_template(name).render(context)
    except TemplateError as error:
        whose = "kdbench" if track is None else f"the track {track.name!r}"
        raise UsageError(f"the template {name} of {whose} cannot be used: {error}", place=name) from error


def require_templates(track: Track, tracks: list[Track]) -> None:
    """Raise ``UsageError`` unless ``track`` brings templates."""
    if track.templates is None:
        able = ", ".join(other.name for other in tracks if other.templates is not None)
        hint = f"tracks with templates: {able or 'none'}; kdbench methods --track {track.name} lists what to start from"
        raise UsageError(f"the track {track.name!r} has no templates of methods", place="--track", hint=hint)
