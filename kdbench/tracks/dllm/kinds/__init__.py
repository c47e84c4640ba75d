"""Kinds of problems: how their splits are made and how responses are checked.

To add one: a model of its data in :mod:`kdbench.tracks.dllm.data.specs`, a subclass of
:class:`~kdbench.tracks.dllm.kinds.base.Kind` in a module here, and its line below.
"""

from __future__ import annotations

from pkgutil import resolve_name
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kdbench.tracks.dllm.kinds.base import Kind

KINDS = {
    "lists": "kdbench.tracks.dllm.kinds.lists:Lists",
    "squares": "kdbench.tracks.dllm.kinds.squares:Squares",
    "arith": "kdbench.tracks.dllm.kinds.arith:Arith",
    "hf-problems": "kdbench.tracks.dllm.kinds.hub:HubProblems",
}
"""``data.kind`` to module and class; imported when a task asks for it."""


def kind_of(name: str) -> type[Kind]:
    """The class of a value of ``data.kind``."""
    found: type[Kind] = resolve_name(KINDS[name])
    return found
