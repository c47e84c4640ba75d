"""Track ``decoding``: a frozen target writes with fewer forwards, or in a required format, and says the same."""

from __future__ import annotations

from pathlib import Path

from kdbench.track import Track

HERE = Path(__file__).parent

TRACK = Track(
    name="decoding",
    title="Decoding: drafts, parallel decoding and output formats",
    version=1,
    tasks=HERE / "tasks.yaml",
    spec="kdbench.tracks.decoding.spec:DecodingSpec",
    task="kdbench.tracks.decoding.task:DecodingTask",
    preload=("torch", "transformers.models.llama.modeling_llama"),
    packs=HERE / "packs",
    templates=HERE / "templates",
)
