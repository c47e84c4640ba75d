"""``kdbench methods``, ``tasks``, ``tracks`` and ``suites``: what there is."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from shutil import get_terminal_size
from textwrap import wrap
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kdbench.cli.common import (
    DEFAULT_RESULTS,
    Json,
    Plugins,
    Results,
    complain,
    open_registry,
    print_json,
    shown,
    table,
)
from kdbench.errors import Problem, UsageError, did_you_mean

if TYPE_CHECKING:
    from kdbench.discovery.records import Broken, Method
    from kdbench.leaderboard.brief import Brief
    from kdbench.registry import Registry

Names = Annotated[
    list[str] | None, typer.Argument(metavar="[show] [NAME]...", help="Show these in full; without, list all.")
]
TrackName = Annotated[str | None, typer.Option("--track", help="Only of this track.")]


def register(app: typer.Typer) -> None:
    for verb in (methods, tasks, tracks, suites):
        app.command()(verb)


def methods(
    names: Names = None,
    track: TrackName = None,
    tag: Annotated[list[str] | None, typer.Option("--tag", help="Only with this tag; may be given again.")] = None,
    search: Annotated[
        str | None, typer.Option("--search", help="Only with these words in name, title or tags.")
    ] = None,
    plugin: Plugins = None,
    as_json: Json = False,
    results: Results = DEFAULT_RESULTS,
) -> None:
    """List methods, or show some in full, with what became of their claims and their best results so far.

    Example: kdbench methods --search contrastive --track llm
    """
    registry = open_registry(plugin, warn=False)
    _require_track(registry, track)
    asked = _asked(names)
    if asked:
        found = [registry.method(name, track) for name in asked]
        briefs = _briefs(registry, found, results)
        if as_json:
            print_json([_method_in_full(method, briefs.get(method.key)) for method in found])
            return
        for method in found:
            _show_method(registry, method, briefs.get(method.key))
        return
    chosen = [method for method in registry.methods.values() if _matches(method, track, tag or (), search)]
    if as_json:
        broken = [asdict(item) for item in registry.broken]
        print_json({"methods": [_method_data(method) for method in chosen], "broken": broken})
        return
    table(
        ("method", "year", "title", "tasks", "tags", "source"),
        [
            (
                m.key,
                getattr(m.card, "year", None),
                m.card.title,
                ", ".join(m.card.tasks),
                ", ".join(m.card.tags),
                m.source,
            )
            for m in chosen
        ],
        right=("year",),
    )
    typer.echo(
        _count(len(chosen), "method") + (f" of {len(registry.methods)}" if len(chosen) < len(registry.methods) else "")
    )
    _list_broken(registry.broken)


def tasks(
    names: Names = None,
    track: TrackName = None,
    scale: Annotated[str | None, typer.Option("--scale", help="Scale of the tasks that are shown in full.")] = None,
    plugin: Plugins = None,
    as_json: Json = False,
) -> None:
    """List tasks, or show some (NAME or NAME@SCALE) in full.

    Example: kdbench tasks digits-gap@quick
    """
    registry = open_registry(plugin, warn=False)
    _require_track(registry, track)
    asked = _asked(names)
    if asked:
        from kdbench.catalog import DEFAULT_SCALE

        specs = []
        for name in asked:
            plain, _, own = name.partition("@")
            entry = registry.catalog.find(plain if track is None or "/" in plain else f"{track}/{plain}")
            default = DEFAULT_SCALE if DEFAULT_SCALE in entry.scales else entry.scales[-1]
            specs.append(registry.task(entry.name, own or scale or default))
        if as_json:
            print_json([spec.model_dump(mode="json") for spec in specs])
            return
        for spec in specs:
            fitting = [method.slug for method in registry.methods.values() if registry.supports(method, spec)]
            _heading(f"{spec.name}@{spec.scale}", spec.title)
            _outline(spec.model_dump(mode="json", exclude={"name", "scale", "title"}))
            _fact("methods", ", ".join(fitting) or "none")
        return
    chosen = [entry for entry in registry.tasks() if track in (None, entry.track)]
    if as_json:
        print_json({"tasks": [asdict(entry) for entry in chosen], "broken": [asdict(b) for b in registry.broken]})
        return
    rows = [
        (
            entry.name,
            entry.family,
            entry.title,
            ", ".join(entry.scales),
            sum(registry.supports(method, entry) for method in registry.methods.values()),
        )
        for entry in chosen
    ]
    table(("task", "family", "title", "scales", "methods"), rows, right=("methods",))
    typer.echo(_count(len(chosen), "task"))
    _list_broken(registry.broken)


def tracks(plugin: Plugins = None, as_json: Json = False) -> None:
    """List tracks, the families of tasks.

    Example: kdbench tracks
    """
    registry = open_registry(plugin, warn=False)
    entries = registry.tasks()
    rows = [
        {
            "track": track.name,
            "title": track.title,
            "version": track.version,
            "tasks": sum(entry.track == track.name for entry in entries),
            "methods": sum(method.track == track.name for method in registry.methods.values()),
        }
        for track in registry.tracks.values()
    ]
    if as_json:
        print_json({"tracks": rows, "broken": [asdict(item) for item in registry.broken]})
        return
    columns = ("track", "title", "version", "tasks", "methods")
    table(columns, [[row[column] for column in columns] for row in rows], right=columns[2:])
    _list_broken(registry.broken)


def suites(plugin: Plugins = None, as_json: Json = False) -> None:
    """List the suites that check, plan and run find by name.

    Example: kdbench suites
    """
    from kdbench.yamlio import load

    registry = open_registry(plugin, warn=False)
    rows = []
    for name, path in registry.suites().items():
        try:
            description = str(load(path).data.get("description", ""))
        except UsageError as error:
            description = f"cannot be read: {error.problems[0]}"
        rows.append({"suite": name, "path": shown(str(path)), "description": " ".join(description.split())})
    if as_json:
        print_json({"suites": rows, "broken": [asdict(item) for item in registry.broken]})
        return
    table(("suite", "path", "description"), [list(row.values()) for row in rows])
    _list_broken(registry.broken)


# --- parts ------------------------------------------------------------------------------------------------------------


def _asked(names: Sequence[str] | None) -> list[str]:
    """Names to show in full; the word ``show`` before them may be left out."""
    asked = list(names or ())
    if asked[:1] == ["show"]:
        if len(asked) == 1:
            raise UsageError("show what?", place="show", hint="give a name, such as vision/kd")
        asked = asked[1:]
    return asked


def _require_track(registry: Registry, track: str | None) -> None:
    if track is not None and track not in registry.tracks:
        hint = did_you_mean(track, list(registry.tracks), label="tracks")
        raise UsageError(f"there is no track {track!r}", place="--track", hint=hint)


def _matches(method: Method, track: str | None, tags: Iterable[str], search: str | None) -> bool:
    card = method.card
    text = " ".join((method.key, card.title, *card.tags, getattr(card, "venue", ""), method.doc)).lower()
    return (
        track in (None, method.track)
        and set(tags) <= set(card.tags)
        and all(word in text for word in (search or "").lower().split())
    )


def _method_data(method: Method) -> dict[str, Any]:
    return {"kind": type(method.card).__name__.lower(), **asdict(method)}


def _method_in_full(method: Method, brief: Brief | None) -> dict[str, Any]:
    from kdbench.docstrings import mechanism

    return {
        **_method_data(method),
        "mechanism": mechanism(method.doc),
        "verdicts": [
            {"scale": found.scale, "verdict": found.verdict, "findings": dict(found.counts)}
            for found in (brief.conclusions if brief else ())
        ],
        "best": [best.record() for best in (brief.best if brief else ())],
    }


def _briefs(registry: Registry, methods: Sequence[Method], results: Path) -> dict[str, Brief]:
    """What the results say about each method; nothing where there are none, or where they cannot be read."""
    from kdbench.store import spool

    if not any((folder / spool.OUTCOME).exists() for folder in spool.iter_folders(results)):
        return {}
    from kdbench.leaderboard.brief import brief
    from kdbench.store import duck

    problems: list[Problem] = []
    try:
        found = duck.query(results, lambda con: {m.key: brief(con, registry, m.key) for m in methods}, problems)
    except UsageError as error:
        problems, found = error.problems, {}
    for problem in problems:
        complain("warning", problem)
    return found


def _show_method(registry: Registry, method: Method, brief: Brief | None) -> None:
    from kdbench.docstrings import mechanism

    card = asdict(method.card)
    claims = card.pop("claims")
    _heading(method.key, card.pop("title"))
    for name in ("slug", "track"):
        card.pop(name)
    for name, value in card.items():
        if value:
            _fact(name, ", ".join(value) if isinstance(value, list | tuple) else str(value))
    fitting = [entry.name for entry in registry.tasks() if registry.supports(method, entry)]
    _fact("fits", ", ".join(fitting) or "no task of this installation")
    _fact("source", f"{method.source}, {shown(str(method.path))}")
    _fact("imports", ", ".join(method.imports))
    if method.doc:
        lines = mechanism(method.doc).splitlines()
        typer.echo("\n" + "\n".join(line for text in lines for line in _wrapped(text)))
    if method.fields:
        typer.echo()
        table(
            ("parameter", "type", "default", "range", "meaning"),
            [(f.name, f.annotation, repr(f.default), _range(f.bounds), f.description) for f in method.fields],
        )
    if claims:
        typer.echo()
        for claim in claims:
            sides = f"{_side(claim['subject'])} is {claim['kind']} to {_side(claim['reference'])}"
            margin = f", margin {claim['margin']:g}" if claim["margin"] else ""
            where = f"in {claim['metric']} on {', '.join(claim['tasks'])}{margin}"
            _fact("claim", f"{sides} {where}. {claim['note']}".rstrip())
        status = (brief and brief.claims()) or "not checked yet"
        _fact("so far", f"{status}; kdbench claims {method.key} has the numbers, --run makes what is missing")
    if brief and brief.best:
        columns, rows, right = brief.table()
        typer.echo()
        table(columns, rows, title="  best results so far", right=right)
    typer.echo()


def _side(side: Any) -> str:
    """A subject or a reference of a claim: ``taid``, ``taid(adaptive=False)``, ``0.5``."""
    if not isinstance(side, dict):
        return str(side)
    params = ", ".join(f"{name}={value!r}" for name, value in side.get("params", {}).items())
    return f"{side['method']}({params})" if params else str(side["method"])


def _range(bounds: dict[str, Any]) -> str:
    signs = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<", "multiple_of": "multiple of"}
    lengths = {"min_length": "length >=", "max_length": "length <="}
    return ", ".join(f"{(signs | lengths)[name]} {value}" for name, value in bounds.items())


def _heading(name: str, title: str) -> None:
    typer.echo(f"{typer.style(name, bold=True)}: {title}")


def _fact(name: str, value: str) -> None:
    if value:
        typer.echo("\n".join(_wrapped(value, f"  {name:<12}", " " * 14)))


def _wrapped(text: str, first: str = "  ", rest: str = "  ") -> list[str]:
    """Lines of a text within the width of the terminal."""
    return wrap(
        text,
        width=max(get_terminal_size().columns, 60),
        initial_indent=first,
        subsequent_indent=rest,
        break_on_hyphens=False,
    )


def _outline(data: dict[str, Any], indent: int = 2) -> None:
    """Nested mappings, one value a line."""
    for name, value in data.items():
        if isinstance(value, dict) and value:
            typer.echo(f"{' ' * indent}{name}:")
            _outline(value, indent + 2)
        else:
            typer.echo(f"{' ' * indent}{name}: {value}")


def _count(number: int, what: str) -> str:
    return f"{number} {what}" + "s" * (number != 1)


def _list_broken(broken: Sequence[Broken]) -> None:
    if not broken:
        return
    typer.echo(f"\nnot usable ({_count(len(broken), 'problem')}):")
    for item in broken:
        hint = f" ({item.hint})" if item.hint else ""
        typer.echo(f"  {shown(item.place)}: {item.reason}{hint} [{item.source}]")
