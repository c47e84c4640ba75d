"""The track ``waves``: learn a wave from a few of its points, or from a teacher that saw more of them."""

from pathlib import Path

from kdbench import hookimpl
from kdbench.track import Track

TRACK = Track(
    name="waves",
    title="Waves of one variable",
    version=1,
    tasks=Path(__file__).with_name("tasks.yaml"),
    spec="waves.spec:WavesSpec",
    task="waves.task:WavesTask",
)


@hookimpl
def kdbench_tracks():
    return [TRACK]
