"""Kinds of data of the track, as those of :mod:`kdbench.tracks.llm.kinds`."""

from __future__ import annotations

KINDS = {
    "arith": "kdbench.tracks.decoding.kinds.problems:Arith",
    "formats": "kdbench.tracks.decoding.kinds.formats:Formats",
    "listops": "kdbench.tracks.decoding.kinds.problems:ListOps",
    "docs": "kdbench.tracks.decoding.kinds.docs:Docs",
    "scenes": "kdbench.tracks.decoding.kinds.scenes:Scenes",
    "hf-instruct": "kdbench.tracks.decoding.kinds.problems:HubProblems",
}
"""``data.kind`` to module and class; imported when a task asks for it."""
