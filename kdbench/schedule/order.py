"""In which order waiting work starts: teachers first, then fairly between suites, within a suite long jobs first.

Pure bookkeeping: nothing here starts, reads or writes anything. Work with equal demands is interchangeable for the
packing, so the queue keeps it in lines by demand, each in order, and looks at the heads of the lines only.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Mapping, Sized
from dataclasses import dataclass

from kdbench.job import Job
from kdbench.schedule.packing import TINY, Capacity, Demand, Packing, Slot, never_fits, share_of
from kdbench.spec import digest

PATIENCE = 64
"""How often others may overtake work that does not fit; from then on only what does not delay it starts."""

TEACHERS = ""
"""Stands for a suite where preparations line up, before all suites; the name of a suite is never empty."""


@dataclass(frozen=True)
class Preparation:
    """Teachers to make before some jobs can start."""

    job: Job
    """One of those jobs: any will do."""
    needs: tuple[str, ...]
    """Names of the cache entries."""
    title: str = ""

    @property
    def id(self) -> str:
        return f"teacher-{digest(sorted(self.needs))}"


@dataclass(eq=False, slots=True)
class Item:
    """Work that waits for a slot."""

    id: str
    """Unique in the queue: the job's id, or a name of the teacher."""
    job: Job
    demand: Demand
    suites: tuple[str, ...]
    """Names of the suites of the run that it is for, at least one; what it uses counts for them in equal parts."""
    seconds: float | None = None
    """How long it is expected to run; None where that is unknown."""
    preparation: Preparation | None = None
    """What it makes, where it is not a job of the plan."""
    awaited: int = 0
    """Of a preparation: jobs that wait for it."""
    limit: int = 0
    """Bytes of main memory after which it is ended; 0: no limit."""
    overtaken: int = 0
    """How often other work started before it while it was first in line but did not fit."""
    number: int = -1
    """Place in the order of the plan; -1: given by the queue, in the order of adding."""


Key = tuple[bool, bool, float, int, int]
"""What the work of a suite is ordered by: first ones, unknown lengths, the longest, the plan, as it came."""

Line = list[tuple[Key, Item]]
"""A heap of work with equal demands. What does not wait any more stays in it until it comes to the top."""


class Queue:
    """Work that waits for a slot."""

    def __init__(self, capacity: Capacity) -> None:
        self.capacity = capacity
        """What there is in all, of which slots are parts; to be set anew where that changes."""
        self._waiting: dict[str, tuple[Key, Item]] = {}
        self._lines: dict[str, dict[Demand, Line]] = {}
        """By suite and demand."""
        self._used: dict[str, float] = {}
        """By suite: seconds of the whole machine that it has used, with what its running work is expected to use."""
        self._running: dict[str, float] = {}
        """Work that was taken and not charged yet, with what it counts for in each of its suites meanwhile."""
        self._charged = 0
        self._seconds = 0.0
        """Of all work that was charged."""
        self._reserved: Item | None = None
        """What waits for its slot to become free, while other work starts only where it does not delay it."""
        self._exhausted: tuple[Capacity, Capacity] | None = None
        """With so much free, of so much in all, nothing that waits fits."""
        self._added = 0

    def __len__(self) -> int:
        return len(self._waiting)

    def __iter__(self) -> Iterator[Item]:
        """What waits, in the order in which it would start one by one if all of it fitted."""
        left = {
            suite: sorted((entry for line in lines.values() for entry in line if self._waits(entry)), reverse=True)
            for suite, lines in self._lines.items()
        }
        used, seen = dict(self._used), set[str]()
        while (suite := _poorest(left, used)) is not None:
            _, item = left[suite].pop()
            if item.id not in seen:
                seen.add(item.id)
                _count(used, item, self._part(item, self._guess(item)))
                yield item

    def add(self, item: Item, *, first: bool = False) -> None:
        """Line up work; ``first``: before all other work of its suites. Replaces what waits under its id."""
        self.remove(item.id)
        self._added += 1
        if item.number < 0:
            item.number = self._added
        long = item.seconds or 0.0 if item.preparation is None else item.awaited
        key = (not first, item.seconds is not None, -long, item.number, self._added)
        self._waiting[item.id] = key, item
        for suite in item.suites if item.preparation is None else (TEACHERS,):
            line = self._lines.setdefault(suite, {}).setdefault(item.demand, [])
            heapq.heappush(line, (key, item))
        self._exhausted = None

    def remove(self, id: str) -> Item | None:
        """Take work out without starting it; None where nothing waits under this id."""
        _, item = self._waiting.pop(id, (None, None))
        if item is not None and item is self._reserved:
            self._reserved = None
            self._exhausted = None
        return item

    def take(self, free: Capacity) -> list[tuple[Item, Slot]]:
        """What starts now, each with its slot out of ``free``; it does not wait any more.

        What is taken counts as running until it is charged.
        """
        if not self._waiting or free.cpus <= TINY or (free, self.capacity) == self._exhausted:
            return []
        taken: list[tuple[Item, Slot]] = []
        overtaken: dict[str, Item] = {}
        packing = Packing(free)
        reserved = self._reserved
        if reserved is not None and never_fits(reserved.demand, self.capacity) is not None:
            reserved = self._reserved = None  # there is less than before
        if reserved is not None and not self._start(reserved, packing, taken):
            packing.reserve(reserved.demand, self.capacity)
        heads = {suite: self._heads(lines) for suite, lines in self._lines.items()}
        while not packing.full and (suite := _poorest(heads, self._used)) is not None:
            _, line = heapq.heappop(heads[suite])
            if not self._clean(line):
                continue
            item = line[0][1]
            if self._start(item, packing, taken):
                for other in overtaken.values():
                    other.overtaken += 1
                if self._clean(line):
                    heapq.heappush(heads[suite], (line[0][0], line))
            else:
                overtaken[item.id] = item
            self._reserve(overtaken, packing)
        if not taken:
            self._exhausted = free, self.capacity
        return taken

    def charge(self, item: Item, seconds: float) -> None:
        """Work that was taken runs no more: it held its slot for ``seconds``, 0 where it never started.

        Its suites are charged the part of the machine that its demand is, for that long.
        """
        counted = self._running.pop(item.id, 0.0)
        _count(self._used, item, self._part(item, seconds) - counted)
        if seconds > 0:
            self._charged += 1
            self._seconds += seconds

    # --- fairness -----------------------------------------------------------------------------------------------------

    def _guess(self, item: Item) -> float:
        """Seconds for which running work counts: what is expected of it, or the mean of what was charged."""
        if item.seconds is not None:
            return item.seconds
        return self._seconds / self._charged if self._charged else 1.0

    def _part(self, item: Item, seconds: float) -> float:
        """What so many seconds of an item count for in each of its suites."""
        return seconds * share_of(item.demand, self.capacity) / len(item.suites)

    # --- lines --------------------------------------------------------------------------------------------------------

    def _waits(self, entry: tuple[Key, Item]) -> bool:
        key, item = entry
        return self._waiting.get(item.id, (None,))[0] is key

    def _clean(self, line: Line) -> bool:
        """Drop what does not wait any more from the head of a line; whether anything is left."""
        while line and not self._waits(line[0]):
            heapq.heappop(line)
        return bool(line)

    def _heads(self, lines: dict[Demand, Line]) -> list[tuple[Key, Line]]:
        """A heap of a suite's lines by their heads."""
        for demand in [demand for demand, line in lines.items() if not self._clean(line)]:
            del lines[demand]
        heads = [(line[0][0], line) for line in lines.values()]
        heapq.heapify(heads)
        return heads

    def _start(self, item: Item, packing: Packing, taken: list[tuple[Item, Slot]]) -> bool:
        slot = packing.offer(item.demand)
        if slot is None:
            return False
        self.remove(item.id)
        self._running[item.id] = self._part(item, self._guess(item))
        _count(self._used, item, self._running[item.id])
        taken.append((item, slot))
        return True

    def _reserve(self, overtaken: Mapping[str, Item], packing: Packing) -> None:
        """Where nothing is reserved, reserve for the first that was overtaken often enough and can run here at all."""
        if self._reserved is not None:
            return
        for item in overtaken.values():
            if item.overtaken >= PATIENCE and never_fits(item.demand, self.capacity) is None:
                self._reserved = item
                packing.reserve(item.demand, self.capacity)
                return


def _count(used: dict[str, float], item: Item, part: float) -> None:
    for suite in item.suites:
        used[suite] = used.get(suite, 0.0) + part


def _poorest(left: Mapping[str, Sized], used: Mapping[str, float]) -> str | None:
    """Of those that have anything left, the suite that has used least; None where nobody has."""
    ready = [suite for suite, what in left.items() if len(what)]
    return TEACHERS if TEACHERS in ready else min(ready, key=lambda suite: used.get(suite, 0.0), default=None)
