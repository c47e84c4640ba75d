"""What a run learns about its own jobs while it goes on: how long they take and how much memory they need.

A plan knows what past runs tell. In a run over a weekend most of what there is to know is measured meanwhile: the
first seeds of a method say what the others need, and these are packed and ordered by it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

from kdbench.history import Expectation, Experience, larger
from kdbench.job import Outcome, Resources
from kdbench.schedule.order import Item, Queue
from kdbench.schedule.packing import Capacity, Demand, demand_of, limit_of
from kdbench.store.index import LEARNED, Likeness, Taken

Refuses = Callable[[Demand], str | None]


def room_of(
    asked: Resources, capacity: Capacity, expectation: Expectation | None, refuses: Refuses
) -> tuple[Demand, int, str | None]:
    """What work occupies, its limit of main memory in bytes, and why it can never run (None where it can).

    What is learned never stops work that could be tried: where it would, it counts for nothing.
    """
    demand = demand_of(asked, capacity, expectation)
    reason = refuses(demand)
    if reason is not None and expectation is not None:
        return room_of(asked, capacity, None, refuses)
    return demand, limit_of(asked, demand, capacity), reason


CLOSE = 1.25
"""Times are alike up to this factor: the order of jobs is no matter of seconds."""


@dataclass
class _Kind:
    """Jobs that are alike in all but the seed."""

    past: Expectation
    """What outcomes of earlier runs say, or nothing."""
    left: dict[str, None] = field(default_factory=dict)
    """Ids of those that have not ended for the first time."""
    used: Expectation = field(default_factory=Expectation)
    """What those that wait were last lined up by."""
    count: int = 0
    """Outcomes of this run that say something."""


class Learning:
    """Notes the outcomes of a run, and lines up anew what waits where they change what is known about it."""

    def __init__(self, queue: Queue, refuses: Refuses) -> None:
        self.queue = queue
        self.refuses = refuses
        self._experience = Experience()
        """Of this run alone."""
        self._kinds: dict[Likeness, _Kind] = {}

    def watch(self, item: Item, past: Expectation | None) -> None:
        """Follow a job that is to run; ``past`` is what its present demand was made of. Teachers are left out."""
        if item.preparation is not None:
            return
        like = Likeness.of(item.job)
        if like not in self._kinds:
            past = past or Expectation()
            self._kinds[like] = _Kind(past, used=past)
        self._kinds[like].left[item.id] = None

    def learn(self, outcome: Outcome) -> list[str]:
        """Note how a job ended, also where it is tried once more; that try keeps what it was given.

        What is like it is lined up anew where that makes a difference: other memory is set aside for it, or its time
        is another by more than ``CLOSE``. Returns the ids of like jobs of which the same is known now, but which do
        not wait.
        """
        like = Likeness.of(outcome.job)
        kind = self._kinds.get(like)
        if kind is None:
            return []
        kind.left.pop(outcome.id, None)
        if outcome.status not in LEARNED:
            return []
        self._experience.add(like, outcome.status, Taken.of(outcome.seconds, outcome.cost))
        kind.count += 1
        now = self._expect(like)
        if _alike(kind.used.seconds, now.seconds) and self._same_room(outcome.job.resources, kind.used, now):
            return []
        kind.used = now
        others = []
        for id in kind.left:
            item = self.queue.remove(id)
            if item is None:
                others.append(id)
            else:
                self.queue.add(self.improved(item))
        return others

    def improved(self, item: Item) -> Item:
        """Work that waits, with what is known about it by now; its place in the plan stays."""
        like = Likeness.of(item.job)
        if item.preparation is not None or like not in self._kinds:
            return item
        expectation = self._expect(like)
        demand, limit, reason = room_of(item.job.resources, self.queue.capacity, expectation, self.refuses)
        if reason is not None:  # the machine that it could run on is gone for now
            return item
        return replace(item, demand=demand, limit=limit, seconds=expectation.seconds)

    def _same_room(self, asked: Resources, before: Expectation, now: Expectation) -> bool:
        if (before.memory, before.gpu_memory) == (now.memory, now.gpu_memory):
            return True
        first, second = (room_of(asked, self.queue.capacity, one, self.refuses) for one in (before, now))
        return first == second

    def _expect(self, like: Likeness) -> Expectation:
        """What this run measured of the time, or else the past; of memory, the most that either saw."""
        past = self._kinds[like].past
        now = self._experience.expect(like) if self._kinds[like].count else Expectation()
        return Expectation(
            past.seconds if now.seconds is None else now.seconds,
            larger(past.memory, now.memory),
            larger(past.gpu_memory, now.gpu_memory),
        )


def _alike(one: float | None, other: float | None) -> bool:
    if one is None or other is None:
        return one is other
    return one <= other * CLOSE and other <= one * CLOSE
