"""What discovery finds: readings of files, methods, and plugins that cannot be used."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from kdbench.cards import Baseline, Card, Paper

if TYPE_CHECKING:
    from kdbench.params import Params
    from kdbench.yamlio import Document


class Flaw(NamedTuple):
    """One thing that is wrong with a plugin's file."""

    line: int
    """1-based."""
    column: int
    """1-based, in characters."""
    reason: str
    hint: str = ""


@dataclass(frozen=True)
class ParamField:
    """One field of a method's ``Params``, as its source declares it."""

    name: str
    annotation: str
    """Source of the type, such as ``float | None``."""
    default: Any
    bounds: dict[str, Any]
    """``ge gt le lt multiple_of`` of numbers, ``min_length max_length`` of texts and collections."""
    description: str
    line: int = 1
    """Where the field stands in the method's file."""


@dataclass(frozen=True)
class Reading:
    """What a file declares. A method or an extension is usable only without flaws."""

    kind: Literal["method", "extension", "other"]
    digest: str
    """See :func:`kdbench.discovery.digests.method_digest`."""
    flaws: tuple[Flaw, ...] = ()
    card: Card | None = None
    line: int = 1
    """Line of the card."""
    track_position: tuple[int, int] = (1, 1)
    """Line and column of the card's track."""
    slug: str = ""
    """Slug of the card as far as it could be read."""
    fields: tuple[ParamField, ...] = ()
    doc: str = ""
    imports: tuple[str, ...] = ()
    hooks: tuple[str, ...] = ()


@dataclass(frozen=True)
class Method:
    """A method as its source describes it; nothing of it has been executed."""

    key: str
    """``track/slug``."""
    slug: str
    track: str
    card: Paper | Baseline
    path: Path
    module: str | None
    """Importable name, or None for a method that is loaded from its file."""
    digest: str
    """See :func:`kdbench.discovery.digests.method_digest`."""
    fields: tuple[ParamField, ...]
    doc: str
    """Docstring of the module."""
    source: str
    """``built-in``, ``entry point NAME (DIST VERSION)``, ``drop-in`` or ``--plugin``."""
    imports: tuple[str, ...]
    """Third-party top-level packages that the module imports unconditionally."""
    line: int = 1
    """Line of the card."""

    def params_model(self) -> type[Params]:
        """A model with the fields, types and ranges that the source declares, made without importing the method.

        Raises ``UsageError`` where pydantic refuses what the source declares.
        """
        from kdbench.discovery.params import model_of

        return model_of(self)

    def canonical(self, params: Mapping[str, Any] | Document) -> dict[str, Any]:
        """Every parameter, defaults included, as JSON values in the order of the declaration.

        Types are strict as far as JSON can tell them apart: ``true`` and ``"0.4"`` are no numbers, an integer is a
        float. Raises ``UsageError`` with one problem per wrong parameter, at its place where ``params`` is a
        :class:`kdbench.yamlio.Document`.
        """
        from kdbench.discovery.params import canonical

        return canonical(self, params)


@dataclass(frozen=True)
class Broken:
    """A plugin that cannot be used, and why; everything else works without it."""

    place: str
    """``file:line:column``, a path, or the name of an entry point."""
    reason: str
    hint: str
    source: str
    names: tuple[str, ...] = ()
    """What it would have been called: slug and file name; so that whoever asks for it learns the reason."""

    def __str__(self) -> str:
        return f"{self.place}: {self.reason}" + (f" ({self.hint})" if self.hint else "")
