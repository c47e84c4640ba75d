"""What all pages share: the Jinja2 environment, texts made safe, and JSON inside of pages.

Names, labels, errors and logs come from results and are not trusted: autoescape is on, control characters are shown as
escapes, and nothing is marked safe but what :func:`json_script` and :func:`markdown` return.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from typing import TYPE_CHECKING, Any

from markupsafe import Markup, escape

from kdbench.errors import plain
from kdbench.leaderboard.render import compact, estimate
from kdbench.leaderboard.statistics import Estimate
from kdbench.quantities import show_bytes, show_duration

if TYPE_CHECKING:
    from jinja2 import Environment

NOTHING = "–"
"""In cells without a value."""
_IN_SCRIPTS = {ord(c): f"\\u{ord(c):04x}" for c in "<>&\u2028\u2029"}


def json_script(value: Any) -> Markup:
    """JSON for the inside of ``<script type="application/json">``: nothing in it can end the script.

    Raises ``ValueError`` for numbers that are not finite.
    """
    text = json.dumps(value, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return Markup(text.translate(_IN_SCRIPTS))  # every character that HTML knows is escaped


def markdown(text: str) -> Markup:
    """Markdown of extensions as HTML; HTML in it is shown as text, and links run no scripts."""
    return Markup(_markdown().render(text))  # html=False: the renderer escapes everything


@cache
def _markdown() -> Any:
    from markdown_it import MarkdownIt

    return MarkdownIt("commonmark", {"html": False}).enable("table").disable("image")


def lines(text: str) -> str:
    """Text of several lines without other control characters."""
    return "\n".join(plain(line) for line in text.replace("\r\n", "\n").split("\n"))


def finalized(value: object) -> object:
    """What an expression of a template becomes: None is empty, control characters are shown as escapes."""
    if value is None:
        return ""
    if isinstance(value, str) and not isinstance(value, Markup) and not value.isprintable():
        return plain(value)
    return value


def number(value: Estimate | None, factor: float = 1.0) -> Markup:
    """A mean, and its interval beside it in its own column: ``71.2 <i>± 0.9</i>``."""
    mean, _, half = estimate(value, factor).partition(" ± ")
    return Markup(
        f"{mean or NOTHING}<i>± {half}</i>" if half else f"{mean or NOTHING}<i></i>"
    )  # digits and signs alone


def amount(value: float | None, meter: str) -> str:
    """An amount of a meter with its unit, which the meter's name says."""
    if value is None:
        return NOTHING
    if meter.endswith("_seconds"):
        return show_duration(value)
    return show_bytes(value) if meter.endswith("_bytes") else compact(value)


@cache
def environment() -> Environment:
    """The environment of all templates, which are part of the package."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    made = Environment(
        loader=PackageLoader("kdbench.leaderboard.report"),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=finalized,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters.update(json_script=json_script, markdown=markdown, number=number, amount=amount, compact=compact)
    made.filters.update(duration=show_duration, multiline=_multiline)
    return made


def _multiline(text: str) -> Markup:
    return escape(lines(text))


def render(template: str, context: Mapping[str, Any]) -> str:
    """A page."""
    return environment().get_template(template).render(context)
