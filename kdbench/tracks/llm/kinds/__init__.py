"""Kinds of data: how the splits of each are made, and how a model of it is validated and scored.

One module a family of problems, one class a value of ``data.kind``. To add one: a model of its data in
:mod:`kdbench.tracks.llm.data.specs`, a subclass of :class:`~kdbench.tracks.llm.kinds.base.Kind` in a module here, and
its line below.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kdbench.tracks.llm.kinds.base import Kind

KINDS = {
    "text": "text:Text",
    "hf-text": "text:HubText",
    "text-ood": "ood:TextOod",
    "lengths": "lengths:Lengths",
    "instruct": "instruct:Instruct",
    "hf-instruct": "instruct:HubInstruct",
    "icl": "icl:Icl",
    "reviews": "classify:Reviews",
    "docstrings": "classify:Docstrings",
    "docstring-seeds": "seeds:SeedDocstrings",
    "ner": "ner:Ner",
}
"""``data.kind`` to module and class; imported when a task asks for it."""


def kind_named(name: str) -> type[Kind]:
    """The class of a value of ``data.kind``."""
    module, _, cls = KINDS[name].partition(":")
    found: type[Kind] = getattr(import_module(f"{__name__}.{module}"), cls)
    return found
