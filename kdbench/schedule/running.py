"""What the fork server knows of a job that runs: its process, its output, its limits, its last sign of life."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import psutil

from kdbench.schedule.logs import CappedLog

if TYPE_CHECKING:
    from kdbench.schedule.workers import Worker

CHUNK = 1 << 18
"""Bytes of output that are read of one job at a time."""
LAST_CHUNKS = 64
"""Chunks of output that are read of a job that has ended: something that it left may print for ever."""


@dataclass
class Running:
    """One job on its process. All times are ``time.monotonic()``."""

    id: str
    pid: int
    process: psutil.Process
    output: int
    """Descriptor of the pipe that it prints into."""
    log: CappedLog
    memory: int
    """Bytes of main memory that it may use with all that it started; 0: any."""
    gpus: tuple[str, ...]
    started: float
    timeout: float
    heartbeat: float | None
    oom_kills: int
    """Processes that the kernel had killed for want of memory when it started."""
    worker: Worker | None = None
    """The process, where it runs one job after the other."""
    taken: bool = True
    """Whether the process has begun with the job."""
    kill_at: float | None = None
    reason: str | None = None
    """Why it is being ended."""
    message: str = ""
    family: list[psutil.Process] = field(default_factory=list)
    """Its process and all that it started, as of the last look."""
    sign: str = "its start"
    """The last sign of life."""
    sign_at: float = 0.0
    activity: tuple[float, ...] = ()
    """Processor time and bytes read and written, as of the last look."""
    open: bool = True
    """Whether anyone can still print into the pipe."""
    log_failed: bool = False

    def __post_init__(self) -> None:
        self.family = [self.process]
        self.sign_at = self.started

    def lives(self, sign: str, now: float) -> None:
        """Take note of a sign of life."""
        self.sign, self.sign_at = sign, now

    def read_output(self) -> bytes | None:
        """What it printed next; empty where everyone who could print has ended, None where there is nothing now."""
        try:
            return os.read(self.output, CHUNK)
        except BlockingIOError:
            return None
