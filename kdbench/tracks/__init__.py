"""The tracks that come with kdbench, contributed like those of any other extension."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from kdbench import hookimpl
from kdbench.track import Track
from kdbench.tracks.decoding import TRACK as DECODING
from kdbench.tracks.diffusion import TRACK as DIFFUSION
from kdbench.tracks.llm import TRACK as LLM
from kdbench.tracks.vision import TRACK as VISION


@hookimpl
def kdbench_tracks() -> Sequence[Track]:
    return VISION, LLM, DECODING, DIFFUSION


@hookimpl
def kdbench_report_sections(results: Path) -> Mapping[str, str]:
    """What the tracks add to a page: the study of distillation pipelines, where there are some."""
    from kdbench.tracks.llm.blocks.autodistiller import sections

    return sections(results)
