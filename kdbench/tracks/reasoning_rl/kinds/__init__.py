"""Kinds of data of the track, as those of :mod:`kdbench.tracks.llm.kinds`."""

from __future__ import annotations

KINDS = {
    "minireason": "kdbench.tracks.reasoning_rl.kinds.minireason:MiniReason",
    "hf-math": "kdbench.tracks.reasoning_rl.kinds.hub:HubMath",
}
"""``data.kind`` to module and class; imported when a task asks for it."""
