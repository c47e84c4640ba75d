"""Kinds of data: how the splits of each are made, and how samples of it are scored.

One module a family of problems, one class a value of ``data.kind``. To add one: a model of its data in
:mod:`kdbench.tracks.diffusion.data.specs`, a subclass of :class:`~kdbench.tracks.diffusion.kinds.base.Kind` in a module
here, and its line below.
"""

from __future__ import annotations

from pkgutil import resolve_name
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kdbench.tracks.diffusion.kinds.base import Kind

KINDS = {
    "points": "kdbench.tracks.diffusion.kinds.points:Points",
    "digits": "kdbench.tracks.diffusion.kinds.digits:Digits",
    "attributes": "kdbench.tracks.diffusion.kinds.attributes:Attributes",
    "edit": "kdbench.tracks.diffusion.kinds.edit:Edit",
    "sr": "kdbench.tracks.diffusion.kinds.sr:SuperResolution",
    "codes": "kdbench.tracks.diffusion.kinds.tokens:Codes",
    "images": "kdbench.tracks.diffusion.kinds.images:Images",
}
"""``data.kind`` to module and class; imported when a task asks for it."""


def kind_of(name: str) -> type[Kind]:
    """The class of a value of ``data.kind``."""
    found: type[Kind] = resolve_name(KINDS[name])
    return found
