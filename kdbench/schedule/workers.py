"""Processes of the fork server that run one job after the other: who is idle, and who has to go.

A worker keeps the devices that it started with, and with them its CUDA context, which costs a second or more and
hundreds of MiB of each device. So an idle one goes when a job that it does not fit needs a process or all of its
device, and when nothing came for a while.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

import psutil

from kdbench.schedule import processes

IDLE = 60.0
"""Seconds after which an idle worker ends."""


@dataclass(eq=False)
class Worker:
    """A forked process that takes orders."""

    pid: int
    control: Connection
    output: int
    """Descriptor of the pipe that it prints into."""
    gpus: tuple[str, ...]
    process: psutil.Process
    idle_since: float = 0.0

    def order(self, order: Mapping[str, Any]) -> bool:
        """Give it a job; False where it has ended."""
        try:
            self.control.send_bytes(json.dumps(order).encode())
        except OSError:
            return False
        return True

    def close(self) -> None:
        """Let go of the descriptors."""
        self.control.close()
        os.close(self.output)


class Idle:
    """The workers that have nothing to do."""

    def __init__(self) -> None:
        self.workers: dict[int, Worker] = {}
        """By process id."""
        self.ending: set[int] = set()
        """Processes that were ended and are not collected yet."""

    def add(self, worker: Worker, now: float) -> None:
        worker.idle_since = now
        self.workers[worker.pid] = worker

    def take(self, gpus: tuple[str, ...]) -> Worker | None:
        """The one with these devices that worked last, whose memory is warm; None where there is none."""
        fitting = [worker for worker in self.workers.values() if worker.gpus == gpus]
        if not fitting:
            return None
        return self.workers.pop(max(fitting, key=lambda worker: worker.idle_since).pid)

    def retire_for(self, gpus: tuple[str, ...], *, alone: bool, forks: bool) -> list[Worker]:
        """End those in the way of a job: all on its devices where it has them ``alone``, and one where it ``forks``.

        So there are never more workers than jobs ran at once.
        """
        gone = [worker for worker in self.workers.values() if alone and not set(worker.gpus).isdisjoint(gpus)]
        if forks and not gone and self.workers:
            gone = [min(self.workers.values(), key=lambda worker: worker.idle_since)]
        return self._end(gone)

    def retire_old(self, now: float) -> list[Worker]:
        """End those that had nothing to do for long."""
        return self._end([worker for worker in self.workers.values() if now - worker.idle_since > IDLE])

    def _end(self, workers: list[Worker]) -> list[Worker]:
        for worker in workers:
            del self.workers[worker.pid]
            self.ending.add(worker.pid)
            processes.kill_group(worker.pid)  # it holds nothing that is not on the disk
        return workers

    def collected(self, pid: int) -> Worker | None:
        """A process ended: the idle worker that it was, or None."""
        self.ending.discard(pid)
        return self.workers.pop(pid, None)

    def __contains__(self, pid: object) -> bool:
        """Whether this is a process of a worker that is idle or ending."""
        return pid in self.workers or pid in self.ending
