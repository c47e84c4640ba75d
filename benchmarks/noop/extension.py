"""The track ``noop`` and the executor ``instant``, given with ``--plugin``.

The jobs of the track do nothing but what every job does, so that what they take is the scheduler's.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from kdbench import hookimpl
from kdbench.track import Track

if TYPE_CHECKING:
    from kdbench.schedule.executor import Executor

HERE = Path(__file__).parent

if str(HERE.parent) not in sys.path:
    sys.path.append(str(HERE.parent))


@hookimpl
def kdbench_tracks() -> Sequence[Track]:
    return [
        Track(
            name="noop",
            title="Nothing to do",
            version=1,
            tasks=HERE / "tasks.yaml",
            spec="noop.spec:NoopSpec",
            task="noop.task:NoopTask",
        )
    ]


@hookimpl
def kdbench_executors() -> Mapping[str, Callable[..., Executor]]:
    from noop.instant import InstantExecutor

    return {"instant": InstantExecutor}
