"""What work occupies, and on which slot it goes: pure functions of what is asked for and what is free."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kdbench.history import Expectation
    from kdbench.job import Resources

GROWTH = 1.25
"""Work whose peak of memory is known gets so many times that, and a reserve."""
RESERVE = 64 << 20
"""Bytes of main memory."""
CUDA_RESERVE = 640 << 20
"""Bytes of GPU memory: a process with CUDA takes half a GiB that torch does not count."""

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
    """A slot for the demand, or None.

    Of the devices it gets those with the smallest shares left, so that others stay whole. Among equal ones, those whose
    memory just suffices; where it is not known what that is, those with most of it.
    """
    if demand.cpus > free.cpus + TINY or demand.memory > free.memory:
        return None
    if demand.gpus <= 0 and not demand.gpu_memory:
        return Slot(demand.cpus, memory=demand.memory)
    count = _count(demand)
    by_room = sorted(
        (device.share, device.memory if demand.gpu_memory else -device.memory, number, share)
        for number, device in enumerate(free.gpus)
        for share in [_share(demand, device)]
        if device.share + TINY >= share and device.memory >= demand.gpu_memory
    )[:count]
    if len(by_room) < count:
        return None
    numbers = tuple(sorted(number for _, _, number, _ in by_room))
    return Slot(demand.cpus, numbers, by_room[0][3], demand.memory, demand.gpu_memory)


def _count(demand: Demand) -> int:
    """Devices that a demand with any is for."""
    return max(1, round(demand.gpus))


def _share(demand: Demand, device: Device) -> float:
    """What the demand takes of a device: what it says, or what its memory is of the device's."""
    return min(1.0, demand.gpus) if demand.gpus > 0 else min(1.0, demand.gpu_memory / max(1, device.total))


class Packing:
    """Gives slots to work that is offered in order of preference, out of what is free now."""

    def __init__(self, free: Capacity) -> None:
        self.free = free
        """What is free and not reserved; below 0 where what is reserved is not free yet."""
        self._too_large: set[Demand] = set()

    @property
    def full(self) -> bool:
        """Whether nothing more can start: all work takes some of the cores."""
        return self.free.cpus <= TINY

    def offer(self, demand: Demand) -> Slot | None:
        """Take a slot for the demand, or None where it does not fit."""
        slot = fit(demand, self.free) if demand not in self._too_large else None
        if slot is None:
            self._too_large.add(demand)
        else:
            self.free = self.free.take(slot)
        return slot

    def reserve(self, demand: Demand, capacity: Capacity) -> None:
        """Keep what the demand waits for: from now on only what does not delay it fits.

        Cores and memory are set aside whether or not they are free yet, and of the devices that can hold it (by what
        there is in all, ``capacity``) those that have most room, so that what runs there is not followed by others.
        """
        suited = [
            (free.share, number)
            for number, (free, whole) in enumerate(zip(self.free.gpus, capacity.gpus))
            if whole.memory >= demand.gpu_memory and (demand.gpus > 0 or demand.gpu_memory)
        ]
        kept = {number for _, number in sorted(suited, key=lambda each: (-each[0], each[1]))[: _count(demand)]}
        gpus = tuple(
            Device(0, device.total, -1.0) if number in kept else device for number, device in enumerate(self.free.gpus)
        )
        self.free = Capacity(self.free.cpus - demand.cpus, gpus, self.free.memory - demand.memory)


def share_of(demand: Demand, capacity: Capacity) -> float:
    """What part of a machine a demand takes, from 0 to 1: of what it takes most of."""
    shares = [demand.cpus / max(TINY, capacity.cpus), demand.memory / max(1, capacity.memory)]
    if capacity.gpus:
        largest = max(capacity.gpus, key=lambda device: device.total)
        shares.append(_share(demand, largest) * _count(demand) / len(capacity.gpus))
    return min(1.0, max(shares))


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
    if demand.cpus > capacity.cpus + TINY:
        return f"asks for {demand.cpus:g} CPU cores, but there are {capacity.cpus:g}"
    if demand.memory > capacity.memory:
        return f"asks for {_gib(demand.memory)} of memory, but there are {_gib(capacity.memory)}"
    return None


def _are(count: int) -> str:
    return {0: "is none", 1: "is one"}.get(count, f"are {count}")


def _gib(size: int) -> str:
    return f"{size / 2**30:.1f} GiB"


def equal_share(cpus: float, capacity: Capacity) -> int:
    """Bytes of main memory in proportion to cores, so that as many jobs fit as there are cores."""
    return int(capacity.memory * min(1.0, cpus / max(TINY, capacity.cpus)))


def demand_of(asked: Resources, capacity: Capacity, expected: Expectation | None = None) -> Demand:
    """The demand of work with these resources on a machine of this capacity.

    More cores than there are count as all of them. Memory that is not asked for is what ``expected`` makes likely,
    with a reserve, but never more than there is; where that is unknown, main memory is an equal share of the
    machine's and GPU memory is not counted.
    """
    cpus = min(asked.cpus, capacity.cpus)
    memory, gpu_memory = asked.memory, asked.gpu_memory
    if memory is None and expected is not None and expected.memory is not None:
        memory = min(capacity.memory, _with_reserve(expected.memory, RESERVE))
    if memory is None:
        memory = equal_share(cpus, capacity)
    if gpu_memory is None and asked.gpus and expected is not None and expected.gpu_memory is not None:
        room = sorted((device.memory for device in capacity.gpus), reverse=True)[: max(1, round(asked.gpus))]
        gpu_memory = min(room[-1] if room else 0, _with_reserve(expected.gpu_memory, CUDA_RESERVE))
    return Demand(cpus, asked.gpus, memory, gpu_memory or 0)


def _with_reserve(peak: int, reserve: int) -> int:
    """A quarter more and the reserve, rounded up to one of eight sizes an octave: equal demands are found quickly."""
    size = int(peak * GROWTH) + reserve
    step = 1 << max(0, size.bit_length() - 4)
    return -(-size // step) * step


def limit_of(asked: Resources, demand: Demand, capacity: Capacity) -> int:
    """Bytes of main memory after which work is ended: what it asks for, or else at least an equal share."""
    return asked.memory if asked.memory is not None else max(equal_share(demand.cpus, capacity), demand.memory)
