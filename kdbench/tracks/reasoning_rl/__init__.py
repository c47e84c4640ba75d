"""Track ``reasoning_rl``: a small language model learns to solve verifiable problems from its own attempts."""

from __future__ import annotations

from pathlib import Path

from kdbench.track import Track

HERE = Path(__file__).parent

TRACK = Track(
    name="reasoning_rl",
    title="Reasoning: reinforcement learning and on-policy distillation",
    version=1,
    tasks=HERE / "tasks.yaml",
    spec="kdbench.tracks.reasoning_rl.spec:ReasoningSpec",
    task="kdbench.tracks.reasoning_rl.task:ReasoningTask",
    preload=("torch", "transformers.models.llama.modeling_llama"),
    packs=HERE / "packs",
    templates=HERE / "templates",
)
