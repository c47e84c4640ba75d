"""The packing policy: never more than there is, in order, nobody starved."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from kdbench.job import Resources
from kdbench.schedule.packing import PATIENCE, Capacity, Demand, Device, Slot, demand_of, fit, never_fits, pack

GIB = 1 << 30

demands = st.builds(
    Demand,
    cpus=st.sampled_from([0.5, 1, 2, 3]),
    gpus=st.sampled_from([0, 0, 0.25, 0.5, 1, 2]),
    memory=st.integers(0, 8).map(lambda gib: gib * GIB),
)
capacities = st.builds(
    Capacity,
    cpus=st.integers(1, 8),
    gpus=st.integers(0, 4).map(lambda n: (Device(8 * GIB, 8 * GIB),) * n),
    memory=st.just(16 * GIB),
)


@given(st.lists(demands, max_size=30), capacities)
def test_nothing_is_committed_twice(wanted, capacity):
    free = capacity
    for position, slot in pack([(demand, 0) for demand in wanted], capacity):
        demand = wanted[position]
        assert (slot.cpus, slot.memory) == (demand.cpus, demand.memory)
        assert slot.share * len(slot.gpus) >= demand.gpus - 1e-9
        free = free.take(slot)
    assert free.cpus >= -1e-9
    assert free.memory >= 0
    assert all(device.share >= -1e-9 and device.memory >= 0 for device in free.gpus)


@given(st.lists(demands, min_size=1, max_size=30), capacities)
def test_what_fits_and_is_first_starts(wanted, capacity):
    chosen = [position for position, _ in pack([(demand, 0) for demand in wanted], capacity)]
    assert chosen == sorted(set(chosen))
    if fit(wanted[0], capacity) is not None:
        assert chosen[0] == 0
    left = capacity
    for _, slot in pack([(demand, 0) for demand in wanted], capacity):
        left = left.take(slot)
    assert all(fit(d, left) is None for i, d in enumerate(wanted) if i not in chosen), "something was left that fits"


@given(st.lists(demands, max_size=60), capacities)
def test_everything_that_can_run_does_run_whatever_else_there_is(wanted, capacity):
    """A simulation: one job ends at a time, and a stream of small jobs never keeps a large one from starting."""
    wanted = [demand for demand in wanted if never_fits(demand, capacity) is None and demand.cpus <= capacity.cpus]
    waiting, running, free, rounds = [[demand, 0] for demand in wanted], [], capacity, 0
    while waiting or running:
        rounds += 1
        assert rounds < 10 * (len(wanted) + PATIENCE)
        chosen = pack([(demand, overtaken) for demand, overtaken in waiting], free)
        last = chosen[-1][0] if chosen else -1
        for entry in waiting[: last + 1]:
            entry[1] += 1
        for position, slot in reversed(chosen):
            free = free.take(slot)
            del waiting[position]
            running.append(slot)
        assert running, "nothing runs although something waits"
        free = free.give(running.pop(0))
    assert abs(free.cpus - capacity.cpus) < 1e-6


def test_a_large_job_is_overtaken_only_so_often():
    large, small = Demand(cpus=2), Demand(cpus=1)
    free = Capacity(cpus=1)
    assert [p for p, _ in pack([(large, 0), (small, 0)], free)] == [1]
    assert pack([(large, PATIENCE), (small, 0)], free) == []


def test_shares_of_one_device_are_packed_before_another_is_opened():
    free = Capacity(cpus=8, gpus=(Device(), Device(share=0.5)))
    assert fit(Demand(1, 0.5), free) == Slot(1, (1,), 0.5)
    assert fit(Demand(1, 1), free) == Slot(1, (0,), 1.0)
    assert fit(Demand(1, 2), free) is None
    assert fit(Demand(1, 2), Capacity(8, (Device(), Device(share=0.3), Device()))) == Slot(1, (0, 2), 1.0)
    ten = [(Demand(0.1, 0.1), 0)] * 11
    assert len(pack(ten, Capacity(cpus=8, gpus=(Device(),)))) == 10, "sums of tenths are not exact"


def test_what_can_never_run_is_said_in_words():
    capacity = Capacity(cpus=2, gpus=(Device(),), memory=4 * GIB)
    assert never_fits(Demand(1, 0.5, GIB), capacity) is None
    assert "2 GPUs, but there is one" in never_fits(Demand(1, 2), capacity)
    assert "1 GPU, but there is none" in never_fits(Demand(1, 1), Capacity(2))
    assert "8.0 GiB of memory" in never_fits(Demand(1, 0, 8 * GIB), capacity)


def test_memory_is_shared_equally_unless_asked_for():
    capacity = Capacity(cpus=4, memory=8 * GIB)
    assert demand_of(Resources(), capacity) == Demand(1, 0, 2 * GIB)
    assert demand_of(Resources(memory=3 * GIB), capacity).memory == 3 * GIB
    assert demand_of(Resources(cpus=64), capacity) == Demand(4, 0, 8 * GIB), (
        "more cores than there are means all of them"
    )
