"""Kinds of data: how the splits of each are made, and how a model of it is validated and scored.

One module a family of problems, one class a value of ``data.kind``. To add one: a model of its data in
:mod:`kdbench.tracks.llm.data.specs`, a subclass of :class:`~kdbench.tracks.llm.kinds.base.Kind` in a module here, and
its line below.
"""

from __future__ import annotations

from pkgutil import resolve_name
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kdbench.tracks.llm.kinds.base import Kind

KINDS = {
    "text": "kdbench.tracks.llm.kinds.text:Text",
    "hf-text": "kdbench.tracks.llm.kinds.text:HubText",
    "text-ood": "kdbench.tracks.llm.kinds.ood:TextOod",
    "lengths": "kdbench.tracks.llm.kinds.lengths:Lengths",
    "instruct": "kdbench.tracks.llm.kinds.instruct:Instruct",
    "instruct-distractors": "kdbench.tracks.llm.kinds.instruct:Instruct",
    "written": "kdbench.tracks.llm.kinds.instruct:WrittenInstruct",
    "hf-instruct": "kdbench.tracks.llm.kinds.instruct:HubInstruct",
    "icl": "kdbench.tracks.llm.kinds.icl:Icl",
    "reviews": "kdbench.tracks.llm.kinds.classify:Reviews",
    "docstrings": "kdbench.tracks.llm.kinds.classify:Docstrings",
    "docstring-seeds": "kdbench.tracks.llm.kinds.seeds:SeedDocstrings",
    "ner": "kdbench.tracks.llm.kinds.ner:Ner",
}
"""``data.kind`` to module and class; imported when a task asks for it."""


def load_kind(path: str) -> type[Kind]:
    """The class at ``module:Class``."""
    found: type[Kind] = resolve_name(path)
    return found
