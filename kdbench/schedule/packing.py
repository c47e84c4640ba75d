"""Which ready work goes on which slot: a pure function of what is asked for and what is free."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kdbench.job import Resources

PATIENCE = 64
"""How often others may overtake work that does not fit; from then on everything waits for it, so that it starts."""

TINY = 1e-9
"""Shares of cores and devices are equal up to this: they are sums of decimal fractions."""


@dataclass(frozen=True)
class Demand:
    """What one piece of work occupies."""

    cpus: float = 1.0
    gpus: float = 0.0
    """Below 1: a share of one device; otherwise a whole number of devices, which nobody else gets."""
    memory: int = 0
    """Bytes of main memory."""
    gpu_memory: int = 0
    """Bytes on each of its devices; without ``gpus``, what share of one device it gets."""


@dataclass(frozen=True)
class Slot:
    """What one piece of work was given."""

    cpus: float = 1.0
    gpus: tuple[int, ...] = ()
    """Numbers of its devices."""
    share: float = 1.0
    """Of each of its devices."""
    memory: int = 0
    gpu_memory: int = 0
    """On each of its devices."""


@dataclass(frozen=True)
class Device:
    """What there is of one GPU."""

    memory: int = 0
    """Bytes that nobody has."""
    total: int = 0
    """Bytes in all."""
    share: float = 1.0
    """1 where nobody has it."""


@dataclass(frozen=True)
class Capacity:
    """What there is to give, in all or at the moment."""

    cpus: float
    gpus: tuple[Device, ...] = ()
    memory: int = 0

    def take(self, slot: Slot) -> Capacity:
        """What is left without the slot."""
        return self._change(slot, -1)

    def give(self, slot: Slot) -> Capacity:
        """What there is with the slot given back."""
        return self._change(slot, 1)

    def _change(self, slot: Slot, sign: int) -> Capacity:
        gpus = tuple(
            Device(device.memory + sign * slot.gpu_memory, device.total, device.share + sign * slot.share)
            if number in slot.gpus
            else device
            for number, device in enumerate(self.gpus)
        )
        return Capacity(self.cpus + sign * slot.cpus, gpus, self.memory + sign * slot.memory)


def fit(demand: Demand, free: Capacity) -> Slot | None:
    """A slot for the demand, or None. A share of a device goes where least is left, so that whole devices stay free."""
    if demand.cpus > free.cpus + TINY or demand.memory > free.memory:
        return None
    if demand.gpus <= 0 and not demand.gpu_memory:
        return Slot(demand.cpus, memory=demand.memory)
    count = max(1, round(demand.gpus))
    by_room = sorted(
        (device.share, number, share)
        for number, device in enumerate(free.gpus)
        for share in [_share(demand, device)]
        if device.share + TINY >= share and device.memory >= demand.gpu_memory
    )[:count]
    if len(by_room) < count:
        return None
    numbers = tuple(sorted(number for _, number, _ in by_room))
    return Slot(demand.cpus, numbers, by_room[0][2], demand.memory, demand.gpu_memory)


def _share(demand: Demand, device: Device) -> float:
    """What the demand takes of a device: what it says, or what its memory is of the device's."""
    return min(1.0, demand.gpus) if demand.gpus > 0 else min(1.0, demand.gpu_memory / max(1, device.total))


def pack(ready: Iterable[tuple[Demand, int]], free: Capacity) -> list[tuple[int, Slot]]:
    """Which of the ready work starts now: positions in ``ready``, each with its slot.

    ``ready`` is in order of preference; with each demand comes how often it was overtaken. Work is taken in order;
    what does not fit is overtaken by what does, but no more than ``PATIENCE`` times.
    """
    chosen: list[tuple[int, Slot]] = []
    too_large: set[Demand] = set()
    for position, (demand, overtaken) in enumerate(ready):
        if free.cpus <= TINY:
            break
        slot = fit(demand, free) if demand not in too_large else None
        if slot is not None:
            chosen.append((position, slot))
            free = free.take(slot)
        elif overtaken >= PATIENCE:
            break
        else:
            too_large.add(demand)
    return chosen


def never_fits(demand: Demand, capacity: Capacity) -> str | None:
    """Why a demand can never be met, or None: the end of a sentence that starts with the job."""
    if (demand.gpus or demand.gpu_memory) and fit(replace(demand, cpus=0, memory=0), capacity) is None:
        have = len(capacity.gpus)
        asks = [f"{demand.gpus:g} GPU{'s' if demand.gpus > 1 else ''}"] if demand.gpus else []
        if demand.gpu_memory:
            asks.append(f"{_gib(demand.gpu_memory)} of GPU memory")
            largest = max((device.memory for device in capacity.gpus), default=0)
            if largest < demand.gpu_memory and have:
                return f"asks for {' with '.join(asks)}, but there are {_gib(largest)} free at most on one device"
        return f"asks for {' with '.join(asks)}, but there {_are(have)}"
    if demand.memory > capacity.memory:
        return f"asks for {_gib(demand.memory)} of memory, but there are {_gib(capacity.memory)}"
    return None


def _are(count: int) -> str:
    return {0: "is none", 1: "is one"}.get(count, f"are {count}")


def _gib(size: int) -> str:
    return f"{size / 2**30:.1f} GiB"


def equal_share(cpus: float, capacity: Capacity) -> int:
    """Bytes of main memory in proportion to cores, so that as many jobs fit as there are cores."""
    return int(capacity.memory * min(cpus, capacity.cpus) / capacity.cpus)


def demand_of(asked: Resources, capacity: Capacity) -> Demand:
    """The demand of work with these resources on a machine of this capacity.

    More cores than there are count as all of them. Without a size, memory is an equal share of the machine's.
    """
    cpus = min(asked.cpus, capacity.cpus)
    memory = equal_share(cpus, capacity) if asked.memory is None else asked.memory
    return Demand(cpus, asked.gpus, memory, asked.gpu_memory or 0)
