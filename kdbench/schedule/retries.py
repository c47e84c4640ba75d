"""Whether work that ended without a result is tried once more, and with what: a pure function.

What a job does wrong it would do wrong again, so that only two endings are worth another try: it was short of memory
and others had some of it, or the machine under it went away.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from kdbench.job import Failure, Resources, Status
from kdbench.schedule.packing import TINY, Capacity, Demand, Slot

ATTEMPTS = 3
"""How often work is started that loses its machine every time."""

_ON_DEVICE = ("cuda", "hip ", "cublas", "cudnn")
"""What a message says that speaks of a device's memory rather than of main memory."""


@dataclass(frozen=True)
class Try:
    """An attempt of this run that ended without a result."""

    status: Status
    message: str
    seconds: float
    """Wall-clock time that it took."""

    def __str__(self) -> str:
        return f"{self.status}: {self.message}"

    def data(self) -> dict[str, Any]:
        """As the provenance of an outcome has it, under ``retried``."""
        return asdict(self)


@dataclass(frozen=True)
class Retry:
    """How work is tried once more."""

    demand: Demand
    limit: int
    """Bytes of main memory after which it is ended; 0: no limit."""
    first: bool
    """Whether it goes before all that waits: it had its turn already."""
    why: str
    """The end of a sentence that starts with the work."""


def again(
    status: Status,
    error: Failure,
    *,
    before: Sequence[Try],
    demand: Demand,
    limit: int,
    slot: Slot,
    asked: Resources,
    capacity: Capacity,
) -> Retry | None:
    """How to try work again that ended with ``status`` on ``slot``, or None where its end is final.

    ``before`` are its earlier tries of this run, ``demand`` and ``limit`` (bytes of main memory) what it had this
    time, ``asked`` the resources that the suite states. ``capacity`` is all that there is to give.

    Out of memory: once more, with devices of its own if it shared one and that one's memory ran out, or with all of
    the main memory, so that nothing else runs meanwhile. The main memory that a suite states is a limit and stays
    one. Lost: again as it was, until it has been started ``ATTEMPTS`` times.
    """
    if status == "crashed" and error.type == "lost":
        if len(before) + 1 >= ATTEMPTS:
            return None
        return Retry(demand, limit, True, "was lost with what it ran on and starts again")
    if status != "oom" or any(earlier.status == "oom" for earlier in before):
        return None
    if slot.gpus and on_device(error):
        if slot.share >= 1 - TINY:
            return None
        own = replace(demand, gpus=float(max(1, math.ceil(demand.gpus - TINY))))
        return Retry(own, limit, False, "ran out of GPU memory and is tried once more with a device of its own")
    if asked.memory is not None or limit >= capacity.memory:
        return None
    alone = replace(demand, memory=capacity.memory)
    return Retry(alone, capacity.memory, False, "ran out of memory and is tried once more alone")


def on_device(error: Failure) -> bool:
    """Whether it was the memory of a GPU that ran out."""
    if error.type == "OutOfMemoryError":  # torch's, which main memory never raises
        return True
    message = error.message.lower()
    return any(word in message for word in _ON_DEVICE)
