"""Output formats as templates: literal text and free slots, with the texts that fit as a regular expression.

A template is a sequence of :class:`Literal` and :class:`Slot`. It says which *texts* fit; which *tokens* may be written
is said by the automaton that :mod:`kdbench.tracks.decoding.blocks.automata` makes of it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

DIGITS = "0123456789"
LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"


@dataclass(frozen=True)
class Literal:
    """Exactly one of some texts."""

    options: tuple[str, ...]
    name: str = ""
    """What the text is found by in :meth:`Template.read`; empty: not kept."""

    def __post_init__(self) -> None:
        if not self.options or not all(self.options):
            raise ValueError(f"a literal needs texts of at least one character, not {self.options!r}")

    @property
    def pattern(self) -> str:
        return _group(self.name, "|".join(re.escape(option) for option in self.options))


@dataclass(frozen=True)
class Slot:
    """Free text, up to the first of some stop literals, which belongs to the slot but not to its text."""

    name: str = ""
    allowed: str | None = None
    """Characters that the text may have; None: any."""
    least: int = 0
    """Characters of the text at least."""
    most: int | None = None
    stop: tuple[str, ...] = ()
    """Without any the slot ends where the template goes on."""

    def __post_init__(self) -> None:
        if self.least < 0 or (self.most is not None and self.most < max(1, self.least)):
            raise ValueError(f"a slot of {self.least} to {self.most} characters holds nothing")
        if not all(self.stop):
            raise ValueError("a stop literal needs at least one character")
        inside = [(a, b) for a in self.stop for b in self.stop if a != b and a in b]
        if inside:
            raise ValueError(f"stop literal {inside[0][0]!r} is a part of {inside[0][1]!r}, so the latter never stops")

    @property
    def pattern(self) -> str:
        character = r"[\s\S]" if self.allowed is None else f"[{re.escape(self.allowed)}]"
        stop = "|".join(re.escape(text) for text in self.stop)
        ahead = f"(?!{stop})" if stop else ""
        count = f"{{{self.least},{'' if self.most is None else self.most}}}"
        return _group(self.name, f"(?:{ahead}{character}){count}") + (f"(?:{stop})" if stop else "")


def _group(name: str, inside: str) -> str:
    return f"(?P<{name}>{inside})" if name else f"(?:{inside})"


@dataclass(frozen=True)
class Template:
    """A sequence of literals and slots; a text fits if it is all of them one after the other."""

    segments: tuple[Literal | Slot, ...]

    @cached_property
    def expression(self) -> re.Pattern[str]:
        """What fits, independently of any automaton; names of segments are groups."""
        return re.compile("".join(segment.pattern for segment in self.segments))

    def read(self, text: str) -> dict[str, str] | None:
        """The named parts of a text that fits, else None."""
        found = self.expression.fullmatch(text)
        return None if found is None else found.groupdict()


def template(*segments: Literal | Slot | str | Sequence[str]) -> Template:
    """A template whose literals may be given as plain text, or as a list of texts."""
    made = []
    for segment in segments:
        if isinstance(segment, Literal | Slot):
            made.append(segment)
        else:
            made.append(Literal((segment,) if isinstance(segment, str) else tuple(segment)))
    return Template(tuple(made))
