"""Track ``vision``: compress or transfer an image classifier."""

from __future__ import annotations

from pathlib import Path

from kdbench.track import Track

PACKS = Path(__file__).with_name("packs")
"""Teachers that ship with the track, as cache entries."""

TRACK = Track(
    name="vision",
    title="Image classification",
    version=1,
    tasks=Path(__file__).with_name("tasks.yaml"),
    spec="kdbench.tracks.vision.spec:VisionSpec",
    task="kdbench.tracks.vision.task:VisionTask",
    preload=("torch", "safetensors.torch", "kdbench.tracks.vision.task"),
    packs=PACKS,
    templates=Path(__file__).with_name("templates"),
)
