"""Plain text as Markdown: nothing in it is taken for markup but what stands between double backticks."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

_SPECIAL = re.compile(r"([\\`*_{}\[\]<>#$|~^])")
_ROLE = re.compile(r":(?:py:)?[a-z]+:`~?([^`<]+?)(?: <[^`]*>)?`")
_QUOTED = re.compile(r"(``[^`]+``|`[^`]+`)")


def text(value: object) -> str:
    """A text with reStructuredText's literals and roles, such as a docstring, as one line of Markdown."""
    flowing = _ROLE.sub(r"``\1``", " ".join(str(value).split()))
    parts = _QUOTED.split(flowing)
    return "".join(code(part.strip("`")) if number % 2 else escaped(part) for number, part in enumerate(parts))


def escaped(value: str) -> str:
    """Text in which every character stands for itself."""
    return _SPECIAL.sub(r"\\\1", value)


def code(value: object) -> str:
    """A literal of one line; also in a cell of a table."""
    plain = " ".join(str(value).split()).replace("|", "\\|")
    if not plain:
        return ""
    fence = "`" * (1 + max((len(run) for run in re.findall("`+", plain)), default=0))
    pad = " " if plain[0] == "`" or plain[-1] == "`" else ""
    return f"{fence}{pad}{plain}{pad}{fence}"


def block(value: str, language: str = "text") -> str:
    """Lines as they are."""
    fence = "`" * max(3, 1 + max((len(run) for run in re.findall("`+", value)), default=0))
    return f"{fence}{language}\n{value.rstrip()}\n{fence}\n"


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table; cells are Markdown of one line."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "".join("| " + " | ".join(cells) + " |\n" for cells in lines)
