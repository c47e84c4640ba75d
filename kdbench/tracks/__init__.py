"""The tracks that come with kdbench, contributed like those of any other extension."""

from __future__ import annotations

from collections.abc import Sequence

from kdbench import hookimpl
from kdbench.track import Track
from kdbench.tracks.llm import TRACK as LLM
from kdbench.tracks.vision import TRACK as VISION


@hookimpl
def kdbench_tracks() -> Sequence[Track]:
    return VISION, LLM
