"""Track ``dllm``: masked-diffusion language models that write several tokens at once, and stay right."""

from __future__ import annotations

from pathlib import Path

from kdbench.track import Track

HERE = Path(__file__).parent

TRACK = Track(
    name="dllm",
    title="Masked-diffusion language models: more tokens per forward",
    version=1,
    tasks=HERE / "tasks.yaml",
    spec="kdbench.tracks.dllm.spec:DllmSpec",
    task="kdbench.tracks.dllm.task:DllmTask",
    packs=HERE / "packs",
    templates=HERE / "templates",
)
