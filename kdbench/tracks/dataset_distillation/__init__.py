"""Track ``dataset_distillation``: a small data set that trains a fresh network nearly as well as the whole one."""

from __future__ import annotations

from pathlib import Path

from kdbench.track import Track

HERE = Path(__file__).parent

TRACK = Track(
    name="dataset_distillation",
    title="Dataset distillation: small data sets that train fresh networks",
    version=1,
    tasks=HERE / "tasks.yaml",
    spec="kdbench.tracks.dataset_distillation.spec:DDSpec",
    task="kdbench.tracks.dataset_distillation.task:DDTask",
    preload=("torch", "sklearn.datasets", "sklearn.model_selection"),  # digits are read and split by scikit-learn
    packs=HERE / "packs",
    templates=HERE / "templates",
)
