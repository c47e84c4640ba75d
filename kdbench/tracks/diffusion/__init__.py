"""Track ``diffusion``: a teacher of many steps becomes a generator of one or few, or one without guidance."""

from __future__ import annotations

from pathlib import Path

from kdbench.track import Track

HERE = Path(__file__).parent

TRACK = Track(
    name="diffusion",
    title="Diffusion: generators of one and few steps",
    version=1,
    tasks=HERE / "tasks.yaml",
    spec="kdbench.tracks.diffusion.spec:DiffusionSpec",
    task="kdbench.tracks.diffusion.task:DiffusionTask",
    preload=("torch", "sklearn.datasets", "sklearn.model_selection"),  # digits are read and split by scikit-learn
    packs=HERE / "packs",
    templates=HERE / "templates",
)
