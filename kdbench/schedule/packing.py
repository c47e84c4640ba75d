"""Which ready work goes on which slot: a pure function of what is asked for and what is free."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

PATIENCE = 64
"""How often others may overtake work that does not fit; from then on everything waits for it, so that it starts."""

TINY = 1e-9
"""Shares of cores and devices are equal up to this: they are sums of decimal fractions."""


@dataclass(frozen=True)
class Demand:
    """What one piece of work occupies."""

    cpus: float = 1.0
    gpus: float = 0.0
    """Below 1: a share of one device; otherwise a whole number of devices."""
    memory: int = 0
    """Bytes of main memory."""


@dataclass(frozen=True)
class Slot:
    """What one piece of work was given."""

    cpus: float = 1.0
    gpus: tuple[int, ...] = ()
    """Numbers of its devices."""
    share: float = 1.0
    """Of each of its devices."""
    memory: int = 0


@dataclass(frozen=True)
class Capacity:
    """What there is to give, in all or at the moment."""

    cpus: float
    gpus: tuple[float, ...] = ()
    """Free share of each device, 1 where nobody has it."""
    memory: int = 0

    def take(self, slot: Slot) -> Capacity:
        """What is left without the slot."""
        return self._change(slot, -1)

    def give(self, slot: Slot) -> Capacity:
        """What there is with the slot given back."""
        return self._change(slot, 1)

    def _change(self, slot: Slot, sign: int) -> Capacity:
        gpus = tuple(free + sign * slot.share * (number in slot.gpus) for number, free in enumerate(self.gpus))
        return Capacity(self.cpus + sign * slot.cpus, gpus, self.memory + sign * slot.memory)


def fit(demand: Demand, free: Capacity) -> Slot | None:
    """A slot for the demand, or None. A share of a device goes where least is left, so that whole devices stay free."""
    if demand.cpus > free.cpus + TINY or demand.memory > free.memory:
        return None
    if demand.gpus <= 0:
        return Slot(demand.cpus, memory=demand.memory)
    share = min(1.0, demand.gpus)
    count = max(1, round(demand.gpus))
    by_room = sorted((left, number) for number, left in enumerate(free.gpus) if left + TINY >= share)
    if len(by_room) < count:
        return None
    return Slot(demand.cpus, tuple(sorted(number for _, number in by_room[:count])), share, demand.memory)


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
    """Why a demand can never be met, or None."""
    if demand.gpus > 0 and fit(Demand(0, demand.gpus), capacity) is None:
        have = len(capacity.gpus)
        return f"asks for {demand.gpus:g} GPU{'s' if demand.gpus > 1 else ''}, but there {_are(have)}"
    if demand.memory > capacity.memory:
        return f"asks for {_gib(demand.memory)} of memory, but there are {_gib(capacity.memory)}"
    return None


def _are(count: int) -> str:
    return {0: "is none", 1: "is one"}.get(count, f"are {count}")


def _gib(size: int) -> str:
    return f"{size / 2**30:.1f} GiB"


def demand_of(cpus: float, gpus: float, memory: int | None, capacity: Capacity) -> Demand:
    """The demand of work with these resources on a machine of this capacity.

    More cores than there are count as all of them. Without a size, memory is a share of the machine's in proportion
    to the cores, so that as many jobs fit as there are cores.
    """
    wanted = min(cpus, capacity.cpus)
    return Demand(wanted, gpus, int(capacity.memory * wanted / capacity.cpus) if memory is None else memory)
