"""Cards: what a method says about itself.

A card is one call with literal arguments only, at the top level of the method's module::

    PAPER = Paper(slug="taid", title="...", year=2025, track="llm", ...)

The registry reads it from the source, so listing methods never executes them; executing the module builds
the very same object.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

Kind = Literal["superior", "noninferior", "ratio"]
Direction = Literal["max", "min"]
Source = Literal["code", "paper", "abstract"]


@dataclass(frozen=True, kw_only=True)
class Compare:
    """One falsifiable statement of a paper: ``subject`` compares with ``reference`` on ``tasks`` as ``kind`` says.

    ``superior``: better than the reference by more than ``margin``. ``noninferior``: not worse by more than
    ``margin``. ``ratio``: subject / reference is at least ``margin`` (at most, for a metric to minimise).

    An identity is an error metric with a tolerance: ``reference=0.0, kind="noninferior", margin=1e-5,
    direction="min"``.
    """

    metric: str
    """Name of an official metric, of one that ``evaluate`` of both sides adds, or of a meter such as ``flops``."""
    subject: str | dict[str, Any]
    """A slug, or ``{"method": slug, "params": {...}}``."""
    reference: str | dict[str, Any] | float
    """As ``subject``, or a number in the metric's own unit."""
    tasks: Sequence[str]
    """Task names or families of the card's track; a name that a task has means that task alone."""
    margin: float = 0.0
    """In the metric's own unit; a factor where ``kind`` is ``ratio``."""
    kind: Kind = "superior"
    direction: Direction = "max"
    """Whether more or less is better, of a metric that only methods measure; tasks say it of their own metrics, and
    of a meter less is better."""
    note: str = ""
    """The paper's statement in a sentence, where the numbers alone do not tell it."""


@dataclass(frozen=True, kw_only=True)
class Card:
    """What papers and baselines have in common."""

    slug: str
    """Lower-case name, unique in its track; the file's name by convention."""
    title: str
    track: str
    tasks: Sequence[str]
    """Names or families of the track's tasks that the method belongs to; ``"*"`` for all."""
    requires: Sequence[str] = ()
    """What it needs of the teacher: ``logits``, ``features``, ``weights``, ``samples``, ``labels``; empty: nothing."""
    tags: Sequence[str] = ()
    claims: Sequence[Compare] = ()

    @property
    def key(self) -> str:
        """``track/slug``: the method's identity."""
        return f"{self.track}/{self.slug}"


@dataclass(frozen=True, kw_only=True)
class Paper(Card):
    """The card of a method that a paper proposes."""

    year: int
    authors: Sequence[str] = ()
    """Full names in the order of the paper, such as ``Makoto Shing``; ``kdbench cite`` prints them."""
    venue: str = ""
    arxiv: str = ""
    """Identifier without version, such as ``2501.16937``."""
    url: str = ""
    source: Source = "paper"
    """What the implementation was written from: the official code, the full text, or an abstract."""
    departures: Sequence[str] = ()
    """Where the implementation differs from the paper, each with its reason."""


@dataclass(frozen=True, kw_only=True)
class Baseline(Card):
    """The card of a classic method that papers compare with."""

    reference: str = ""
    """Author, venue and year where the baseline has a publication."""
