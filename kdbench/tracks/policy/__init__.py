"""Track ``policy``: decision policies are imitated, merged, compressed, or found under constraints."""

from __future__ import annotations

from pathlib import Path

from kdbench.track import Track

HERE = Path(__file__).parent

TRACK = Track(
    name="policy",
    title="Policies: imitation, offline and constrained learning of decisions",
    version=1,
    tasks=HERE / "tasks.yaml",
    spec="kdbench.tracks.policy.spec:PolicySpec",
    task="kdbench.tracks.policy.task:PolicyTask",
    preload=("torch", "scipy.sparse.csgraph"),
    packs=HERE / "packs",
    templates=HERE / "templates",
)
