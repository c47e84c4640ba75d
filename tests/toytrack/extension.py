"""The extension that contributes the track ``toy``; works from any process that is given this file."""

from __future__ import annotations

import sys
from pathlib import Path

from kdbench import hookimpl
from kdbench.track import Track

HERE = Path(__file__).parent

if str(HERE.parent) not in sys.path:
    sys.path.append(str(HERE.parent))


@hookimpl
def kdbench_tracks():
    return [
        Track(
            name="toy",
            title="Toy",
            version=1,
            tasks=HERE / "tasks.yaml",
            spec="toytrack.spec:ToySpec",
            task="toytrack.task:ToyTask",
        )
    ]
