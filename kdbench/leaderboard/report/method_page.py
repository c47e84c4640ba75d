"""What the page of one method shows: its card, its parameters, its results on all tasks, its claims, and how to make
them again. Documentation uses the same contexts without results."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from kdbench.docstrings import paragraphs
from kdbench.errors import UsageError
from kdbench.leaderboard.boards import Board, Row
from kdbench.leaderboard.findings import Conclusion, Finding
from kdbench.leaderboard.render import factor_of
from kdbench.leaderboard.verdicts import Verdict

if TYPE_CHECKING:
    from kdbench.cards import Baseline, Paper
    from kdbench.discovery.records import Method, ParamField
    from kdbench.registry import Registry

_SIGNS = {"ge": "≥ {}", "gt": "> {}", "le": "≤ {}", "lt": "< {}", "multiple_of": "multiple of {}"} | {
    "min_length": "length ≥ {}",
    "max_length": "length ≤ {}",
}
_SOURCES = {
    "code": "the official code",
    "paper": "the full text of the paper",
    "abstract": "the abstract of the paper alone",
}


Choices = dict[str, str | dict[str, Any] | None]
"""How a suite names a task, by its digest; None where it cannot."""


@dataclass(frozen=True)
class Result:
    """A row of a board on the page of its method."""

    board: Board
    row: Row
    among: int
    """Rows of the board."""
    verdict: Verdict | None
    """What the claims about it on this task come to; None where there is none."""

    @property
    def factor(self) -> float:
        return factor_of(self.board)


def method_context(
    registry: Registry,
    slug: str,
    boards: Iterable[Board] = (),
    *,
    findings: Sequence[Finding] = (),
) -> dict[str, Any]:
    """What there is to show of the method ``track/slug`` (or ``slug``, where only one track has it).

    ``boards`` are searched for its rows, ``findings`` for its claims. A method that is not installed has no card; its
    results are shown all the same. Raises ``UsageError`` for a name that neither is installed nor has a row.
    """
    rows = [
        (board, row) for board in boards for row in board.rows if slug in (row.method, row.method.split("/", 1)[-1])
    ]
    if slug in registry.methods or not rows:
        key = registry.method(slug).key
    else:
        key = rows[0][1].method
    return context_of(registry, key, [pair for pair in rows if pair[1].method == key], findings)


def context_of(
    registry: Registry,
    key: str,
    rows: Sequence[tuple[Board, Row]],
    findings: Sequence[Finding] = (),
    choices: Choices | None = None,
) -> dict[str, Any]:
    """:func:`method_context` of ``track/slug`` where its rows are known; ``choices`` are shared by many methods."""
    method = registry.methods.get(key)
    own = [finding for finding in findings if finding.method == key]
    return {
        "key": key,
        "slug": key.split("/", 1)[-1],
        "track": key.split("/", 1)[0],
        "card": None if method is None else _card(registry, method),
        "params": [] if method is None else [_param(field) for field in method.fields],
        "results": [Result(board, row, len(board.rows), verdict_of(findings, board, row)) for board, row in rows],
        "findings": own,
        "reproduce": suite_text(registry, key, rows, {} if choices is None else choices),
        "claims_command": next((finding.command for finding in own if finding.command), ""),
    }


def verdict_of(findings: Iterable[Finding], board: Board, row: Row) -> Verdict | None:
    """What the claims whose subject is this row come to on its task."""
    about = tuple(
        finding
        for finding in findings
        if (finding.method, finding.spec_digest, finding.subject) == (row.method, board.spec_digest, row.label)
    )
    return Conclusion(row.method, board.scale, about).verdict if about else None


def _card(registry: Registry, method: Method) -> dict[str, Any]:
    card = method.card
    arxiv = getattr(card, "arxiv", "")
    url = getattr(card, "url", "") or (f"https://arxiv.org/abs/{arxiv}" if arxiv else "")
    source = getattr(card, "source", "")
    return {
        "kind": type(card).__name__.lower(),
        "title": card.title,
        "authors": list(getattr(card, "authors", ())),
        "published": _published(card),
        "arxiv": arxiv,
        "url": url if url.startswith(("https://", "http://")) else "",
        "reference": getattr(card, "reference", ""),
        "made_from": _SOURCES.get(source, ""),
        "claims": list(card.claims),
        "departures": list(getattr(card, "departures", ())),
        "requires": list(card.requires),
        "tags": list(card.tags),
        "tasks": [entry.name for entry in registry.tasks() if registry.supports(method, entry)],
        "doc": paragraphs(method.doc),
        "origin": method.source,
        "file": method.path.name,
        "imports": list(method.imports),
    }


def _published(card: Paper | Baseline) -> str:
    """Venue and year, which the venue may name already."""
    venue, year = getattr(card, "venue", ""), str(getattr(card, "year", ""))
    return venue if year in venue else f"{venue} {year}".strip()


def _param(field: ParamField) -> dict[str, str]:
    return {
        "name": field.name,
        "type": field.annotation,
        "default": json.dumps(field.default, ensure_ascii=False, default=str),
        "range": ", ".join(_SIGNS[name].format(value) for name, value in field.bounds.items()),
        "meaning": field.description,
    }


# --- how to make it again ---------------------------------------------------------------------------------------------


def suite_text(registry: Registry, key: str, rows: Sequence[tuple[Board, Row]], choices: Choices) -> str:
    """A suite that runs exactly the jobs of these rows, as YAML; empty without rows.

    ``choices`` are looked up, and added where they are missing. Tasks that a suite had changed beyond their budget
    cannot be written this way and are left out.
    """
    import yaml

    tasks: dict[str, Any] = {}
    methods: dict[str, dict[str, Any]] = {}
    for board, row in rows:
        if board.spec_digest not in choices:
            choices[board.spec_digest] = _choice(registry, board)
        choice = choices[board.spec_digest]
        if choice is None:
            continue
        given = changed(registry, key, row.params)
        tasks[board.spec_digest] = choice
        entry = methods.setdefault(json.dumps(given, sort_keys=True), {"method": key, "params": given, "tasks": []})
        entry["tasks"].append(choice if isinstance(choice, str) else f"{choice['task']}")
    if not tasks:
        return ""
    everywhere = len(methods) == 1
    entries = []
    for entry in methods.values():
        kept = {name: value for name, value in entry.items() if value and not (name == "tasks" and everywhere)}
        entries.append(key if list(kept) == ["method"] else kept)
    suite = {
        "name": "again",
        "tasks": list(tasks.values()),
        "methods": entries,
        "seeds": sorted({seed for board, _ in rows if board.spec_digest in tasks for seed in board.seeds}),
    }
    text: str = yaml.safe_dump(suite, sort_keys=False, allow_unicode=True, default_flow_style=None, width=100)
    return text


def _choice(registry: Registry, board: Board) -> str | dict[str, Any] | None:
    """How a suite names the task of a board; None where it cannot."""
    from kdbench.spec import digest

    for limits in (None, board.limits):
        try:
            spec = registry.task(board.task, board.scale, limits=limits)
        except UsageError:
            return None
        if digest(spec.identity()) == board.spec_digest:
            return board.title if limits is None else {"task": board.title, "budget": dict(limits)}
    return None


def changed(registry: Registry, key: str, params: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters that differ from the method's defaults; all of them where it is not installed."""
    method = registry.methods.get(key)
    if method is None:
        return dict(params)
    defaults = json.loads(json.dumps({field.name: field.default for field in method.fields}))
    missing = object()
    return {name: value for name, value in params.items() if defaults.get(name, missing) != value}
