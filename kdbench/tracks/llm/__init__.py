"""Track ``llm``: language models, from tiny ones that train on a CPU to Hugging Face checkpoints."""

from __future__ import annotations

from pathlib import Path

from kdbench.track import Track

HERE = Path(__file__).parent

TRACK = Track(
    name="llm",
    title="Language models: instruction following, text and classification",
    version=1,
    tasks=HERE / "tasks.yaml",
    spec="kdbench.tracks.llm.spec:LLMSpec",
    task="kdbench.tracks.llm.task:LLMTask",
    preload=("torch", "transformers.models.llama.modeling_llama", "transformers.models.gpt2.modeling_gpt2"),
    packs=HERE / "packs",
    templates=HERE / "templates",
)
