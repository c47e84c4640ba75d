"""The machines of a cluster as the loop sees them, and what a piece of work asks of one of them: pure functions.

The loop plans with one large machine: the sum of all. Which of them takes a piece of work is the cluster's business;
what is worked out here is what must be free on that one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from kdbench.schedule.packing import Capacity, Demand, Device, Slot, equal_share, never_fits

CRUMB = 1e-6
"""Cores of a cluster without any machine: shares are taken of them, and nothing fits on them."""
GRAIN = 1e-4
"""Parts of a resource that Ray tells apart."""
MEMORY_STEP = 64 << 20
"""Bytes to which memory is rounded up: work that asks for the same can follow each other on one lease."""


@dataclass(frozen=True)
class Node:
    """One machine."""

    id: str
    cpus: float
    memory: int
    """Bytes of main memory that the cluster gives away."""
    gpus: tuple[Device, ...] = ()
    address: str = ""

    @property
    def capacity(self) -> Capacity:
        return Capacity(self.cpus, self.gpus, self.memory)


@dataclass(frozen=True)
class Request:
    """What must be free on one machine for a piece of work."""

    cpus: float
    memory: int
    """Bytes; 0: none is set aside."""
    gpus: float
    """A share of one device below 1, else whole devices."""
    nodes: tuple[str, ...] | None = None
    """Ids of the machines whose devices are large enough; None: any."""


class Nodes:
    """The machines of a cluster, in the order in which they came; those that went keep the numbers of their GPUs."""

    def __init__(self, workers: int | None = None) -> None:
        """``workers``: pieces of work with one core each at the same time, whatever there is now; None: what there is.

        More than there is makes sense where the cluster grows with what waits.
        """
        self.workers = workers
        self._nodes: dict[str, Node] = {}
        self._gone: set[str] = set()

    @property
    def there(self) -> list[Node]:
        return [node for node in self._nodes.values() if node.id not in self._gone]

    def add(self, node: Node) -> None:
        self._nodes[node.id] = node

    def remove(self, id: str) -> None:
        self._gone.add(id)

    def address(self, id: str) -> str:
        """Of a machine that is or was there; empty where it is unknown."""
        return self._nodes[id].address if id in self._nodes else ""

    @property
    def capacity(self) -> Capacity:
        """The sum of all."""
        there = self.there
        cpus, memory = sum(node.cpus for node in there), sum(node.memory for node in there)
        gpus = tuple(
            Device(0, 0, 0.0) if node.id in self._gone else device
            for node in self._nodes.values()
            for device in node.gpus
        )
        if self.workers is not None and cpus:
            memory = int(memory * max(1.0, self.workers / cpus))
            cpus = float(self.workers)
        return Capacity(cpus or CRUMB, gpus, memory)

    def request(self, slot: Slot, *, exact: bool) -> Request:
        """What work on this slot of the sum asks of one machine.

        More cores than a machine has that could take it count as all of them, and so does more memory. ``exact``: the
        memory is what the suite states. Otherwise, up to an equal share of the sum, it is at most what every machine
        has for that many cores: such a share must not leave cores idle where there is less memory than elsewhere.
        """
        gpus, suited = self._devices(slot)
        able = [node for node in self.there if _large_enough(node, slot.gpu_memory, len(slot.gpus))]
        cpus = min(slot.cpus, max((node.cpus for node in able), default=slot.cpus))
        roomy = [node for node in able if node.cpus >= cpus]
        memory = -(-slot.memory // MEMORY_STEP) * MEMORY_STEP
        if not exact and slot.memory <= equal_share(slot.cpus, self.capacity):
            memory = min([memory, *(int(node.memory * cpus / node.cpus) for node in roomy)])
        memory = min(memory, max((node.memory for node in roomy), default=memory))
        return Request(cpus, memory, gpus, suited)

    def _devices(self, slot: Slot) -> tuple[float, tuple[str, ...] | None]:
        """GPUs to ask for, and the machines where that gives the slot's GPU memory.

        Memory of devices is no resource of Ray: a share of the smallest device that is large enough stands for it.
        """
        count, suited = len(slot.gpus), None
        if not count:
            return 0.0, None
        share = slot.share if count == 1 else 1.0
        if slot.gpu_memory:
            large = [node for node in self.there if _large_enough(node, slot.gpu_memory, count)]
            sizes = [device.total for node in large for device in node.gpus if device.total >= slot.gpu_memory]
            share = min(1.0, max(share, slot.gpu_memory / min(sizes, default=slot.gpu_memory)))
            if any(node.gpus and node not in large for node in self.there):
                suited = tuple(node.id for node in large)
        return float(count) if count > 1 else max(GRAIN, round(share - GRAIN / 2, 4)), suited

    def refuses(self, demand: Demand) -> str | None:
        """Why no machine can ever meet a demand, or None: the end of a sentence that starts with the job.

        All memory of the sum means all of one machine, and an equal share what that machine has of it.
        """
        there = self.there
        if not there:
            return "waits for a machine: the cluster has none with cores now"
        total = self.capacity
        bounded = demand.memory <= equal_share(demand.cpus, total) or demand.memory == total.memory
        asked = replace(demand, cpus=0, memory=0 if bounded else demand.memory)
        reasons = [(node, never_fits(asked, node.capacity)) for node in there]
        if any(reason is None for _, reason in reasons):
            return None
        _, reason = max(reasons, key=lambda pair: (len(pair[0].gpus), pair[0].memory))
        return f"{reason} on the largest machine of the cluster"


def _large_enough(node: Node, size: int, count: int) -> bool:
    """Whether a machine has ``count`` devices of ``size`` bytes in all."""
    return sum(device.total >= size for device in node.gpus) >= count


def devices(count: int, sizes: Sequence[tuple[int, int]]) -> tuple[Device, ...]:
    """The devices of a machine that the cluster gives away ``count`` of.

    ``sizes`` are bytes in all and bytes that others use, of each that is seen there. Where the cluster gives away
    some of them, or others than are seen, each counts as the least of them.
    """
    if not sizes:
        return tuple(Device(0, 0) for _ in range(count))
    chosen = list(sizes)
    if len(sizes) != count:
        least = min(total for total, _ in sizes)
        chosen = [(least, max(used for _, used in sizes))] * count
    return tuple(Device(max(0, total - used), total) for total, used in chosen)
