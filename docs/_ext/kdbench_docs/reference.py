"""What pages include with ``<!-- generated: NAME [ARGUMENT] -->``, each a function that returns Markdown."""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Callable
from itertools import pairwise

from kdbench.registry import Registry
from kdbench_docs import models
from kdbench_docs.markdown import block, code, escaped, table, text

_MARK = re.compile(r"^<!-- generated: ([a-z-]+)(?: (\S+))? -->$", re.MULTILINE)


def expanded(page: str, registry: Registry) -> str:
    """A page with everything generated in its place. Raises ``KeyError`` for a part that there is not."""
    return _MARK.sub(lambda match: PARTS[match[1]](registry, match[2] or "").rstrip(), page)


def suite(registry: Registry, argument: str) -> str:
    """The keys of a suite."""
    from kdbench.suite import Suite

    titles = {
        "Suite": "The file",
        "TaskChoice": "Task entry",
        "MethodChoice": "Method entry",
        "SuiteResources": "Resources",
        "ExecutorChoice": "Executor",
    }
    return models.sections(Suite, 3, titles)


def spec(registry: Registry, argument: str) -> str:
    """The fields of a track's tasks, which suites may override."""
    from kdbench.catalog import spec_class

    return models.sections(spec_class(registry.tracks[argument]), 3, {})


def cli(registry: Registry, argument: str) -> str:
    """Every verb with its arguments and options, as the program itself says it."""
    import typer.main
    from typer.cli import get_docs_for_click

    from kdbench.cli import make_app

    command = typer.main.get_command(make_app())
    context = typer.Context(command, info_name="kdbench", **command.context_settings)
    made = get_docs_for_click(obj=command, ctx=context, name="kdbench", indent=1)
    parts = re.split(r"(^```.*?^```$)", made, flags=re.DOTALL | re.MULTILINE)
    return "".join(part if number % 2 else _help_text(part) for number, part in enumerate(parts))


def _help_text(part: str) -> str:
    """Examples are commands, and everything outside of literals stands for itself."""
    lines = []
    for line in part.splitlines(keepends=True):
        example = re.fullmatch(r"\s*Examples?: (kdbench .*)\n", line)
        if example:
            lines.append(f"\n{block('$ ' + example[1], 'console')}\n")
        else:
            pieces = re.split(r"(`[^`]*`)", line)
            lines.append("".join(p if n % 2 else re.sub(r"([<>\[\]])", r"\\\1", p) for n, p in enumerate(pieces)))
    return "".join(lines)


def exit_codes(registry: Registry, argument: str) -> str:
    from kdbench.cli.common import ExitCode

    body = ast.parse(inspect.getsource(ExitCode)).body[0].body  # type: ignore[attr-defined]
    said = {
        member.targets[0].id: doc.value.value  # type: ignore[attr-defined]
        for member, doc in pairwise(body)
        if isinstance(member, ast.Assign) and isinstance(doc, ast.Expr)
    }
    rows = [[code(member.value), code(member.name), text(said[member.name])] for member in ExitCode]
    return table(["code", "name", "meaning"], rows)


def views(registry: Registry, argument: str) -> str:
    """The views of SQL with all their columns."""
    from kdbench.store.views import VIEWS

    parts = []
    for view in VIEWS:
        rows = [[code(column.name), text(column.doc)] for column in view.columns]
        parts.append(f"### {code(view.name)}\n\n{text(view.doc)}.\n\n{table(['column', 'meaning'], rows)}")
    return "\n".join(parts)


def macros(registry: Registry, argument: str) -> str:
    """Functions of SQL that come with the views."""
    from kdbench.store.pairs import STUDENT_P_DOC

    return text(STUDENT_P_DOC)


def tracks(registry: Registry, argument: str) -> str:
    entries = registry.tasks()
    rows = [
        [
            f"[{escaped(track.name)}](tracks/{track.name}.md)",
            text(track.title),
            str(sum(entry.track == track.name for entry in entries)),
            str(sum(method.track == track.name for method in registry.methods.values())),
        ]
        for track in registry.tracks.values()
    ]
    return table(["track", "title", "tasks", "methods"], rows)


def tasks(registry: Registry, argument: str) -> str:
    """The tasks of a track at the scale that runs by default, or else its largest one."""
    from kdbench.catalog import DEFAULT_SCALE

    rows = []
    for entry in registry.tasks():
        if entry.track != argument:
            continue
        spec = registry.task(entry.name, DEFAULT_SCALE if DEFAULT_SCALE in entry.scales else entry.scales[-1])
        limits = ", ".join(f"{amount:g} {unit}" for unit, amount in spec.limits.items())
        ends = " to ".join(code(end) if end else "none" for end in (spec.floor, spec.ceiling))
        headline = f"{code(spec.headline.name)} ({spec.headline.direction})"
        name = entry.name.split("/", 1)[1]
        rows.append([code(name), text(spec.title), entry.family, headline, limits, ends, ", ".join(entry.scales)])
    return table(["task", "title", "family", "headline", "limits", "floor to ceiling", "scales"], rows)


def metrics(registry: Registry, argument: str) -> str:
    """Every official metric of a track's tasks."""
    found: dict[str, tuple[str, str, list[str]]] = {}
    for entry in registry.tasks():
        if entry.track == argument:
            for metric in registry.task(entry.name, entry.scales[-1]).all_metrics():
                direction = "more" if metric.direction == "max" else "less"
                found.setdefault(metric.name, (direction, metric.unit, []))[2].append(entry.name.split("/", 1)[1])
    everywhere = sum(entry.track == argument for entry in registry.tasks())
    rows = [
        [
            code(name),
            f"{direction} is better",
            text(unit),
            "all" if len(where) == everywhere else ", ".join(where) if len(where) < 4 else f"{len(where)} tasks",
        ]
        for name, (direction, unit, where) in found.items()
    ]
    return table(["metric", "direction", "unit", "tasks"], rows)


def methods(registry: Registry, argument: str) -> str:
    """The methods of a track, baselines first."""
    from kdbench.cards import Paper

    own = [method for method in registry.methods.values() if method.track == argument]
    rows = [
        [
            f"[{escaped(method.slug)}](/methods/{argument}/{method.slug}.md)",
            str(method.card.year) if isinstance(method.card, Paper) else "baseline",
            text(method.card.title),
            "all tasks" if "*" in method.card.tasks else ", ".join(map(escaped, method.card.tasks)),
        ]
        for method in sorted(own, key=lambda method: isinstance(method.card, Paper))
    ]
    return table(["method", "year", "title", "made for"], rows)


PARTS: dict[str, Callable[[Registry, str], str]] = {
    "suite": suite,
    "spec": spec,
    "cli": cli,
    "exit-codes": exit_codes,
    "views": views,
    "macros": macros,
    "tracks": tracks,
    "tasks": tasks,
    "metrics": metrics,
    "methods": methods,
}
"""By the name that pages use."""
