"""Kinds of data: how splits and networks of each are made, and how distilled sets of it are scored.

To add one: a model of its data in :mod:`kdbench.tracks.dataset_distillation.data.specs`, a subclass of
:class:`~kdbench.tracks.dataset_distillation.kinds.base.Kind` in a module here, and its line below.
"""

from __future__ import annotations

from pkgutil import resolve_name
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kdbench.tracks.dataset_distillation.kinds.base import Kind

KINDS = {
    "images": "kdbench.tracks.dataset_distillation.kinds.images:ImagesKind",
    "graphs": "kdbench.tracks.dataset_distillation.kinds.graphs:GraphsKind",
}
"""``data.kind`` to module and class; imported when a task asks for it."""


def kind_of(name: str) -> type[Kind]:
    """The class of a value of ``data.kind``."""
    found: type[Kind] = resolve_name(KINDS[name])
    return found
