"""A machine without processes on which a queue's work runs in virtual time, to measure what order and packing do."""

from __future__ import annotations

import heapq
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache

from kdbench.job import Job
from kdbench.schedule.order import Item, Queue
from kdbench.schedule.packing import TINY, Capacity, Demand, Device, Slot, never_fits
from tests.helpers.outcomes import make_job

GIB = 1 << 30


@cache
def some_job() -> Job:
    return make_job("plain")


def item(id: str, demand: Demand, *, suites: tuple[str, ...] = ("one",), seconds: float | None = None) -> Item:
    return Item(id, some_job(), demand, suites, seconds)


@dataclass
class Simulation:
    """Runs what a queue gives it; what it saw stands in its fields afterwards."""

    capacity: Capacity
    durations: Mapping[str, float]
    """Seconds that each item really takes, by id."""
    now: float = 0.0
    started: dict[str, float] = field(default_factory=dict)
    """When each item started, by id, in the order of starts."""
    ended: dict[str, float] = field(default_factory=dict)
    slots: dict[str, Slot] = field(default_factory=dict)

    def run(self, queue: Queue, sizes: Sequence[tuple[float, Capacity]] = ()) -> Simulation:
        """Run until nothing is left; every step is checked for resources that are given twice.

        ``sizes`` are capacities that the machine has from some moment on; what runs goes on.
        """
        free, ends, items, later = self.capacity, list[tuple[float, str]](), dict[str, Item](), list(sizes)
        while len(queue) or ends:
            while later and (later[0][0] <= self.now or not ends):
                moment, larger = later.pop(0)
                self.now = max(self.now, moment)
                free = resized(free, self.capacity, larger)
                self.capacity = queue.capacity = larger
            for taken, slot in queue.take(free):
                assert taken.id not in self.started, "started twice"
                assert_met(taken.demand, slot)
                assert_there(slot, free)
                free = free.take(slot)
                items[taken.id], self.slots[taken.id], self.started[taken.id] = taken, slot, self.now
                heapq.heappush(ends, (self.now + self.durations[taken.id], taken.id))
            if not sizes:
                assert_possible(free, self.capacity)
            if not ends and later:
                continue
            assert ends, "nothing runs although something waits"
            self.now, id = heapq.heappop(ends)
            self.ended[id] = self.now
            free = free.give(self.slots[id])
            queue.charge(items[id], self.durations[id])
        return self


def assert_met(demand: Demand, slot: Slot) -> None:
    assert (slot.cpus, slot.memory) == (demand.cpus, demand.memory)
    on_gpu = demand.gpus > 0 or demand.gpu_memory > 0
    assert len(slot.gpus) == len(set(slot.gpus)) == (max(1, round(demand.gpus)) if on_gpu else 0)
    assert not on_gpu or slot.gpu_memory == demand.gpu_memory
    assert not demand.gpus or slot.share == min(1, demand.gpus)


def assert_there(slot: Slot, free: Capacity) -> None:
    assert slot.cpus <= free.cpus + TINY
    assert slot.memory <= free.memory
    for number in slot.gpus:
        assert slot.share <= free.gpus[number].share + TINY
        assert slot.gpu_memory <= free.gpus[number].memory


def resized(free: Capacity, before: Capacity, now: Capacity) -> Capacity:
    """What is free after a machine changed: less than nothing where more is used than there is now."""
    gpus = tuple(
        Device(left.memory + new.memory - old.memory, new.total, left.share + new.share - old.share)
        for left, old, new in zip(free.gpus, before.gpus, now.gpus, strict=True)
    )
    return Capacity(free.cpus + now.cpus - before.cpus, gpus, free.memory + now.memory - before.memory)


def assert_possible(free: Capacity, capacity: Capacity) -> None:
    assert -TINY <= free.cpus <= capacity.cpus + TINY
    assert 0 <= free.memory <= capacity.memory
    for left, there in zip(free.gpus, capacity.gpus, strict=True):
        assert -1e-6 <= left.share <= there.share + 1e-6
        assert 0 <= left.memory <= there.memory


def lower_bound(items: Sequence[Item], durations: Mapping[str, float], capacity: Capacity) -> float:
    """Seconds that no schedule can beat: the longest job, and of each resource what all jobs need of it together."""
    cpus = sum(durations[each.id] * each.demand.cpus for each in items) / capacity.cpus
    memory = sum(durations[each.id] * each.demand.memory for each in items) / max(1, capacity.memory)
    shares = sum(durations[each.id] * each.demand.gpus for each in items) / max(1, len(capacity.gpus))
    room = sum(device.memory for device in capacity.gpus)
    inside = sum(durations[each.id] * each.demand.gpu_memory * max(1, round(each.demand.gpus)) for each in items) / max(
        1, room
    )
    return max(cpus, memory, shares, inside, max((durations[each.id] for each in items), default=0.0))


def random_capacity(rng: random.Random) -> Capacity:
    """A machine of 1 to 64 cores and 0 to 8 GPUs, of which others may use a part."""
    gpus = []
    for _ in range(rng.choice([0, 0, 1, 2, 4, 8])):
        total = rng.choice([16, 24, 80]) * GIB
        gpus.append(Device(total - rng.choice([0, 0, 0, total // 4]), total))
    cores = rng.choice([1, 2, 4, 8, 16, 64])
    return Capacity(cores, tuple(gpus), cores * rng.choice([2, 4]) * GIB)


def random_part(rng: random.Random, capacity: Capacity) -> Capacity:
    """What is left of a machine, or all of it."""
    gpus = tuple(
        Device(0, 0, 0.0) if rng.random() < 0.3 else Device(int(device.memory * rng.uniform(0.2, 1)), device.total)
        for device in capacity.gpus
    )
    part = rng.choice([0, 0.25, 0.5, 1])
    return Capacity(capacity.cpus * part, gpus, int(capacity.memory * part))


def random_demand(rng: random.Random, capacity: Capacity) -> Demand:
    """Something that the machine can give."""
    while True:
        cpus = rng.choice([0.5, 1, 1, 1, 2, 4])
        memory = rng.choice([0, GIB // 4, GIB, 2 * GIB, 6 * GIB])
        gpus, gpu_memory = rng.choice(
            [
                (0, 0),
                (0, 0),
                (0.1, 0),
                (0.25, 0),
                (0.25, 3 * GIB),
                (0.5, 0),
                (1, 0),
                (2, 0),
                (0, 5 * GIB),
                (1, 12 * GIB),
            ]
        )
        demand = Demand(cpus, gpus, memory, gpu_memory)
        if cpus <= capacity.cpus and never_fits(demand, capacity) is None:
            return demand


def random_work(
    rng: random.Random, capacity: Capacity, count: int, suites: Sequence[str] = ("one",)
) -> tuple[list[Item], dict[str, float]]:
    """Items with a few kinds of demands, most of them with a rough idea of their length, and what they really take."""
    kinds = [random_demand(rng, capacity) for _ in range(rng.randint(1, 8))]
    items, durations = [], {}
    for number in range(count):
        id = f"job-{number}"
        seconds = durations[id] = rng.lognormvariate(2, 1)
        expected = None if rng.random() < 0.2 else seconds * rng.uniform(0.5, 2)
        items.append(item(id, rng.choice(kinds), suites=(rng.choice(suites),), seconds=expected))
    return items, durations


def queue_of(capacity: Capacity, items: Sequence[Item]) -> Queue:
    queue = Queue(capacity)
    for each in items:
        queue.add(each)
    return queue
