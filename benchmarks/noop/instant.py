"""An executor whose jobs end at once, in the coordinator: what is left is the coordinator's own work."""

from __future__ import annotations

import os
import random
import time
from collections import deque
from typing import Any

from kdbench import provenance as origin
from kdbench.job import Outcome, utcnow
from kdbench.schedule.executor import Context, Ended, Event, Started, Work
from kdbench.schedule.packing import Capacity, Demand
from kdbench.store import spool


class InstantExecutor:
    """Writes, as the job's own process would, an outcome with a random score, a curve and a log."""

    def __init__(self, context: Context, *, workers: int = 2) -> None:
        self.capacity = Capacity(float(context.workers or workers))
        self.provenance = dict(context.provenance)
        self.modules = {track: origin.module_digests(track) for track in context.tracks}
        self._waiting: deque[Work] = deque()

    def refuses(self, demand: Demand) -> str | None:
        return None

    def submit(self, work: Work) -> None:
        self._waiting.append(work)

    def poll(self, timeout: float) -> list[Event]:
        if not self._waiting:
            time.sleep(timeout)
        events: list[Event] = []
        while self._waiting:
            work = self._waiting.popleft()
            self._write(work)
            events += [Started(work.id, os.getpid()), Ended(work.id, 0.0, code=0)]
        return events

    def cancel(self, id: str) -> None:
        """Nothing runs for longer than a call of ``poll``."""

    def close(self) -> None:
        self._waiting.clear()

    def _write(self, work: Work) -> None:
        job, now = work.job, utcnow()
        score = random.Random(job.id).random()
        (work.folder / spool.LOG).write_text("nothing to do\n")
        (work.folder / spool.CURVE).write_text(
            "".join(f'{{"step": {step}, "loss": {score / step}}}\n' for step in range(1, 11))
        )
        cost: dict[str, Any] = dict.fromkeys(("steps", "samples", "train_seconds", "eval_seconds", "parameters"), 1.0)
        outcome = Outcome(
            id=job.id,
            job=job,
            status="ok",
            headline=score,
            metrics={"score": score},
            cost={**cost, "peak_rss_bytes": 3e8},
            artifacts=[spool.CURVE],
            started_at=now,
            finished_at=now,
            attempts=work.attempt,
            provenance={**self.provenance, "device": "cpu", "modules": self.modules[job.track]},
        )
        spool.write_outcome(work.folder, outcome)
