"""Reading cards from the source, into the very same objects that executing the module would build."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, fields
from difflib import get_close_matches
from typing import Any, get_args

from kdbench.cards import Baseline, Card, Compare, Direction, Kind, Paper, Source
from kdbench.discovery.literals import Names, NotLiteral, Text, literal
from kdbench.discovery.records import Flaw
from kdbench.errors import did_you_mean

CARDS: dict[str, type[Card]] = {"Paper": Paper, "Baseline": Baseline}
NEEDS = ("logits", "features", "weights", "samples", "labels")

Check = Callable[[Any], str]
"""Returns what is wrong with a value, or an empty string."""


def _text(value: Any) -> str:
    return "" if isinstance(value, str) else f"must be text, not {value!r}"


def _filled(value: Any) -> str:
    return _text(value) or ("" if value.strip() else "must not be empty")


def _slug(value: Any) -> str:
    if isinstance(value, str) and re.fullmatch(r"[a-z0-9][a-z0-9_-]*", value):
        return ""
    return f"must be lower-case letters, digits, '_' and '-', not {value!r}"


def _texts(value: Any) -> str:
    if isinstance(value, list | tuple) and all(isinstance(item, str) and item for item in value):
        return ""
    fix = f"; write [{value!r}]" if isinstance(value, str) else ""
    return f"must be a list of texts, not {value!r}{fix}"


def _some_texts(value: Any) -> str:
    return _texts(value) or ("" if value else "must name at least one")


def _needs(value: Any) -> str:
    unknown = [] if _texts(value) else [item for item in value if item not in NEEDS]
    return _texts(value) or "; ".join(f"{item!r} is unknown, {did_you_mean(item, NEEDS)}" for item in unknown)


def _year(value: Any) -> str:
    if isinstance(value, int) and not isinstance(value, bool) and 1950 <= value <= 2100:
        return ""
    return f"must be a year such as 2025, not {value!r}"


def _arxiv(value: Any) -> str:
    if isinstance(value, str) and re.fullmatch(r"(\d{4}\.\d{4,5}|[a-z-]+(\.[A-Z]{2})?/\d{7})?", value):
        return ""
    return f"must be an identifier without version such as '2501.16937', not {value!r}"


def _one_of(*known: str) -> Check:
    def check(value: Any) -> str:
        return "" if value in known else f"must be one of {', '.join(map(repr, known))}, not {value!r}"

    return check


def _claims(value: Any) -> str:
    if isinstance(value, list | tuple) and all(isinstance(item, Compare) for item in value):
        return ""
    return "must be a list of Compare(...)"


def _number(value: Any) -> str:
    return "" if isinstance(value, int | float) and not isinstance(value, bool) else f"must be a number, not {value!r}"


def _subject(value: Any) -> str:
    if isinstance(value, Mapping):
        unknown = sorted(set(value) - {"method", "params"})
        if unknown:
            return f"has the unknown key {unknown[0]!r}; expected method and params"
        params = value.get("params", {})
        if not isinstance(params, Mapping):
            return f"params must be a dict, not {params!r}"
        value = value.get("method")
    return "" if isinstance(value, str) and value else f"must name a method, not {value!r}"


def _reference(value: Any) -> str:
    return "" if isinstance(value, int | float) and not isinstance(value, bool) else _subject(value)


CHECKS: dict[type, dict[str, Check]] = {
    Card: {
        "slug": _slug,
        "title": _filled,
        "track": _filled,
        "tasks": _some_texts,
        "requires": _needs,
        "tags": _texts,
        "claims": _claims,
    },
    Paper: {
        "year": _year,
        "authors": _texts,
        "venue": _text,
        "arxiv": _arxiv,
        "url": _text,
        "source": _one_of(*get_args(Source)),
        "departures": _texts,
    },
    Baseline: {"reference": _text},
    Compare: {
        "metric": _filled,
        "subject": _subject,
        "reference": _reference,
        "tasks": _some_texts,
        "margin": _number,
        "kind": _one_of(*get_args(Kind)),
        "direction": _one_of(*get_args(Direction)),
        "note": _text,
    },
}
"""What each field of each card may hold."""


@dataclass(frozen=True)
class CardReading:
    """What a file's card came to."""

    card: Card | None
    """None where the file has no card or one with flaws."""
    line: int = 1
    track_position: tuple[int, int] = (1, 1)
    """Line and column of the value of ``track``."""
    slug: str = ""
    """Slug as far as it could be read, also from a card with flaws."""
    present: bool = False
    """Whether there is a card at all."""


def card_statements(tree: ast.Module, names: Names) -> list[ast.Assign | ast.AnnAssign | ast.Expr]:
    """The statements at the top level of a module whose value is a card, as it should be: one, an assignment."""
    return [
        node
        for node in tree.body
        if isinstance(node, ast.Assign | ast.AnnAssign | ast.Expr)
        and isinstance(node.value, ast.Call)
        and names.ours(node.value.func) in CARDS
    ]


def read_card(tree: ast.Module, names: Names, text: Text, flaws: list[Flaw]) -> CardReading:
    """The one card of a module. Adds to ``flaws`` what is wrong with it; a missing card is not a flaw here."""
    found: list[ast.Call] = []
    for node in card_statements(tree, names):
        assert isinstance(node.value, ast.Call)
        found.append(node.value)
        if isinstance(node, ast.Expr):
            flaws.append(text.flaw(node, "the card is not kept", "write PAPER = Paper(...)"))
    if not found:
        hidden = next((node for node in ast.walk(tree) if _is_card(node, names)), None)
        if hidden is None:
            return CardReading(None)
        hint = "write PAPER = Paper(...) as a statement of its own, outside of functions, classes and conditions"
        flaws.append(text.flaw(hidden, "the card is not at the top level of the module", hint))
        return CardReading(None, present=True)
    for extra in found[1:]:
        flaws.append(text.flaw(extra, "a second card in one module", "one file per method"))
    call = found[0]
    if not names.imported(call.func):
        name = names.ours(call.func)
        flaws.append(text.flaw(call, f"{name} is not imported", f"write from kdbench import {name}"))
    before = len(flaws)
    card = _build(CARDS[names.ours(call.func)], call, names, text, flaws)
    keywords = {keyword.arg: keyword.value for keyword in call.keywords}
    slug = keywords.get("slug")
    return CardReading(
        card if len(flaws) == before else None,
        call.lineno,
        text.position(keywords.get("track", call)),
        slug.value if isinstance(slug, ast.Constant) and isinstance(slug.value, str) else "",
        present=True,
    )


def _is_card(node: ast.AST, names: Names) -> bool:
    return isinstance(node, ast.Call) and names.imported(node.func) and names.ours(node.func) in CARDS


def _build(cls: type, call: ast.Call, names: Names, text: Text, flaws: list[Flaw]) -> Any:
    """The object that a call makes, or None with the reasons added to ``flaws``."""
    before = len(flaws)
    known = {field.name: field for field in fields(cls)}
    checks = {name: check for base in cls.__mro__ for name, check in CHECKS.get(base, {}).items()}
    for argument in call.args:
        flaws.append(text.flaw(argument, f"{cls.__name__} takes named arguments only", "write name=value"))
    values: dict[str, Any] = {}
    for keyword in call.keywords:
        name = keyword.arg
        if name is None:
            flaws.append(
                text.flaw(keyword.value, f"** in {cls.__name__}(...) is not a literal", "write every argument")
            )
        elif name not in known:
            hint = did_you_mean(name, list(known), label="fields")
            flaws.append(text.flaw(keyword, f"{cls.__name__} has no field {name!r}", hint))
        else:
            sound = len(flaws)
            try:
                values[name] = literal(keyword.value, lambda node: _compare(node, names, text, flaws))
            except NotLiteral as error:
                hint = f"{cls.__name__} is read without executing the module; write the value itself"
                flaws.append(text.flaw(error.node, f"{name}: {error}", hint))
                continue
            wrong = checks[name](values[name])
            if wrong and len(flaws) == sound:  # what is wrong inside a value is told once
                flaws.append(text.flaw(keyword.value, f"{name} {wrong}"))
    given = {keyword.arg for keyword in call.keywords}
    meant = {name for arg in given - set(known) if arg for name in get_close_matches(arg, known, n=1)}
    missing = [
        name
        for name, field in known.items()
        if name not in given | meant and field.default is MISSING and field.default_factory is MISSING
    ]
    if missing and None not in given:
        flaws.append(text.flaw(call, f"{cls.__name__} lacks {', '.join(missing)}", f"add {missing[0]}=..."))
    return cls(**values) if len(flaws) == before else None


def _compare(node: ast.Call, names: Names, text: Text, flaws: list[Flaw]) -> Any:
    if names.ours(node.func) != "Compare":
        raise NotLiteral(node, f"{ast.unparse(node.func)}(...) is not a literal")
    if not names.imported(node.func):
        flaws.append(text.flaw(node, "Compare is not imported", "write from kdbench import Compare"))
    return _build(Compare, node, names, text, flaws)
