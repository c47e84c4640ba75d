"""The tracks that come with kdbench, contributed like those of any other extension."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from kdbench import hookimpl
from kdbench.track import Track
from kdbench.tracks.dataset_distillation import TRACK as DATASET_DISTILLATION
from kdbench.tracks.decoding import TRACK as DECODING
from kdbench.tracks.diffusion import TRACK as DIFFUSION
from kdbench.tracks.dllm import TRACK as DLLM
from kdbench.tracks.llm import TRACK as LLM
from kdbench.tracks.policy import TRACK as POLICY
from kdbench.tracks.reasoning_rl import TRACK as REASONING_RL
from kdbench.tracks.vision import TRACK as VISION


@hookimpl
def kdbench_tracks() -> Sequence[Track]:
    return VISION, LLM, DECODING, DIFFUSION, REASONING_RL, DLLM, DATASET_DISTILLATION, POLICY


@hookimpl
def kdbench_report_sections(results: Path) -> Mapping[str, str]:
    """What the tracks add to a page: the study of distillation pipelines, where there are some."""
    from kdbench.tracks.llm.blocks.autodistiller import sections

    return sections(results)
