"""What the loop and an executor say to each other.

The loop decides what runs and on which slot; an executor runs it somewhere, reports what happens, and ends it on
request. An executor knows nothing of suites, plans, stores or hooks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

from kdbench.job import Job
from kdbench.schedule.packing import Capacity, Demand, Slot

Kind = Literal["job", "prepare"]
Reason = Literal["timeout", "hung", "oom", "cancelled", "lost"]


@dataclass(frozen=True)
class Work:
    """One thing to run in a process of its own."""

    id: str
    """Unique among what runs: the job's id, or a name of the teacher."""
    kind: Kind
    """``job``: :func:`kdbench.worker.run_job`; ``prepare``: :func:`kdbench.worker.prepare`."""
    job: Job
    folder: Path
    """Folder for what it leaves; the executor writes the log there as ``log.txt``. Empty but for a checkpoint."""
    slot: Slot
    timeout: float
    """Seconds after which it is ended."""
    heartbeat: float | None = None
    """Seconds without a sign of life after which it is ended; None: never."""
    memory_limit: int = 0
    """Bytes of main memory after which it is ended, with all that it started; 0: no limit."""
    attempt: int = 1
    needs: tuple[str, ...] = ()
    """Cache entries (canonical JSON of kind and key) that it reads, for executors whose workers have other caches."""


@dataclass(frozen=True)
class Started:
    """A process took the work."""

    id: str
    pid: int
    host: str = ""
    """Empty for the coordinator's own machine."""
    devices: tuple[str, ...] = ()
    """GPUs, as ``CUDA_VISIBLE_DEVICES`` calls them."""


@dataclass(frozen=True)
class Progress:
    """How far a job is; also its sign of life."""

    id: str
    step: int
    total: int | None
    metrics: Mapping[str, float]


@dataclass(frozen=True)
class Usage:
    """What the work's processes use now."""

    id: str
    values: Mapping[str, float]
    """``rss_bytes`` and, on GPUs, ``gpu_bytes``."""


@dataclass(frozen=True)
class Resized:
    """There is more or less to give than before: a machine came or went, or others use more of a GPU.

    What ran on a machine that went ends as ``lost``.
    """

    capacity: Capacity
    """All that there is now, what runs included. GPUs keep their numbers: one that went has nothing to give any
    more, and new ones come at the end."""


@dataclass(frozen=True)
class Ended:
    """The work's process is gone, with everything that it started."""

    id: str
    seconds: float
    """Wall-clock time from its start."""
    reason: Reason | None = None
    """Why the executor ended it; None where it ended by itself."""
    message: str = ""
    """What the executor measured, where it ended the work."""
    code: int | None = None
    """Exit code, where it exited."""
    signal: str | None = None
    """Name of the signal, where one ended it."""
    peak_rss: int = 0
    """Bytes of main memory at most, of the process itself."""
    left_behind: int = 0
    """Processes that it left and that were killed."""


Event = Started | Progress | Usage | Resized | Ended


class Executor(Protocol):
    """Runs work; contributed by name through the hook ``kdbench_executors``."""

    @property
    def capacity(self) -> Capacity:
        """What there is in all to give to work."""
        ...

    def refuses(self, demand: Demand) -> str | None:
        """Why work with this demand can never run here (the end of a sentence that starts with the job), or None."""
        ...

    def submit(self, work: Work) -> None:
        """Start the work, now; the caller has made sure that its slot is free."""
        ...

    def poll(self, timeout: float) -> list[Event]:
        """What happened since the last call; waits up to ``timeout`` seconds for something to happen."""
        ...

    def cancel(self, id: str) -> None:
        """End the work (with a moment to end by itself); its ``Ended`` follows. Unknown ids are ignored."""
        ...

    def close(self) -> None:
        """End all that runs, at once, and free what the executor holds. May be called again."""
        ...


@dataclass(frozen=True)
class Context:
    """What a factory of executors is given, beside the options of the suite."""

    workers: int | None = None
    """Jobs at once; None: as many as there are cores."""
    wants_gpus: bool = False
    """Whether any job of the run wants a GPU: looking for them takes seconds."""
    preload: Sequence[str] = ("torch",)
    """Modules that are imported once for all jobs."""
    tracks: Sequence[str] = ()
    """Names of the tracks of the run's jobs."""
    plugins: Sequence[Path] = ()
    """Files given with ``--plugin``."""
    provenance: Mapping[str, Any] = field(default_factory=dict)
    """What is the same for all jobs, for their outcomes."""
