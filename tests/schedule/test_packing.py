"""The packing policy: never more than there is, in order, nobody starved."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from kdbench.history import Expectation
from kdbench.job import Resources
from kdbench.schedule.packing import (
    CUDA_RESERVE,
    RESERVE,
    Capacity,
    Demand,
    Device,
    Packing,
    Slot,
    demand_of,
    fit,
    limit_of,
    never_fits,
    share_of,
)

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


def pack(wanted: list[Demand], free: Capacity) -> list[tuple[int, Slot]]:
    """What starts of work in order of preference: positions, each with its slot."""
    packing = Packing(free)
    return [(at, slot) for at, demand in enumerate(wanted) if (slot := packing.offer(demand)) is not None]


@given(st.lists(demands, max_size=30), capacities)
def test_nothing_is_committed_twice(wanted, capacity):
    free = capacity
    for position, slot in pack(wanted, capacity):
        demand = wanted[position]
        assert (slot.cpus, slot.memory) == (demand.cpus, demand.memory)
        assert slot.share * len(slot.gpus) >= demand.gpus - 1e-9
        free = free.take(slot)
    assert free.cpus >= -1e-9
    assert free.memory >= 0
    assert all(device.share >= -1e-9 and device.memory >= 0 for device in free.gpus)


@given(st.lists(demands, min_size=1, max_size=30), capacities)
def test_what_fits_and_is_first_starts(wanted, capacity):
    chosen = [position for position, _ in pack(wanted, capacity)]
    assert chosen == sorted(set(chosen))
    if fit(wanted[0], capacity) is not None:
        assert chosen[0] == 0
    left = capacity
    for _, slot in pack(wanted, capacity):
        left = left.take(slot)
    assert all(fit(d, left) is None for i, d in enumerate(wanted) if i not in chosen), "something was left that fits"


def test_shares_of_one_device_are_packed_before_another_is_opened():
    free = Capacity(cpus=8, gpus=(Device(), Device(share=0.5)))
    assert fit(Demand(1, 0.5), free) == Slot(1, (1,), 0.5)
    assert fit(Demand(1, 1), free) == Slot(1, (0,), 1.0)
    assert fit(Demand(1, 2), free) is None
    assert fit(Demand(1, 2), Capacity(8, (Device(), Device(share=0.3), Device()))) == Slot(1, (0, 2), 1.0)
    ten = [Demand(0.1, 0.1)] * 11
    assert len(pack(ten, Capacity(cpus=8, gpus=(Device(),)))) == 10, "sums of tenths are not exact"


def test_what_can_never_run_is_said_in_words():
    capacity = Capacity(cpus=2, gpus=(Device(),), memory=4 * GIB)
    assert never_fits(Demand(1, 0.5, GIB), capacity) is None
    assert "asks for 3 CPU cores, but there are 2" in never_fits(Demand(3), capacity)
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


@given(st.integers(1, 12 * GIB), st.sampled_from([1, 2, 4]))
def test_memory_that_is_not_asked_for_is_what_past_jobs_needed_and_a_reserve(peak, cores):
    capacity = Capacity(cores, memory=8 * GIB)
    demand = demand_of(Resources(), capacity, Expectation(memory=peak))
    wanted = 1.25 * peak + RESERVE
    assert min(wanted, 8 * GIB) - 1 <= demand.memory <= min(1.13 * wanted, 8 * GIB)
    assert never_fits(demand, capacity) is None, "what was learned never forbids a job"
    assert limit_of(Resources(), demand, capacity) == max(8 * GIB // cores, demand.memory)
    stated = Resources(memory=GIB)
    assert demand_of(stated, capacity, Expectation(memory=peak)).memory == GIB
    assert limit_of(stated, demand_of(stated, capacity), capacity) == GIB


def test_learned_sizes_are_few():
    """The queue looks once at each kind of demand."""
    capacity = Capacity(4, memory=1 << 40)
    sizes = {demand_of(Resources(), capacity, Expectation(memory=n << 20)).memory for n in range(1, 64_000)}
    assert len(sizes) < 100


def test_gpu_memory_is_learned_for_jobs_that_share_a_device_and_is_never_more_than_there_is():
    capacity = Capacity(64, (Device(70 * GIB, 80 * GIB), Device(20 * GIB, 24 * GIB)))
    learned = Expectation(gpu_memory=10 * GIB)
    wanted = 1.25 * 10 * GIB + CUDA_RESERVE
    assert wanted <= demand_of(Resources(gpus=0.1), capacity, learned).gpu_memory <= 1.13 * wanted
    assert demand_of(Resources(gpus=0.1), capacity, Expectation(gpu_memory=90 * GIB)).gpu_memory == 70 * GIB
    assert demand_of(Resources(gpus=2), capacity, Expectation(gpu_memory=90 * GIB)).gpu_memory == 20 * GIB
    assert demand_of(Resources(gpus=0.1, gpu_memory=GIB), capacity, learned).gpu_memory == GIB
    assert demand_of(Resources(gpus=0.1), capacity).gpu_memory == 0
    assert demand_of(Resources(), capacity, learned).gpu_memory == 0
    assert demand_of(Resources(gpus=1), Capacity(1), learned) == Demand(1, 1), "without a device it is refused for that"


def test_memory_learned_packs_as_many_as_fit_and_no_more():
    """Shares would let ten on the device; their memory lets two."""
    free = Capacity(64, (Device(80 * GIB, 80 * GIB),))
    demand = demand_of(Resources(gpus=0.1), free, Expectation(gpu_memory=24 * GIB))
    assert len(pack([demand] * 10, free)) == 2


def test_of_devices_with_equal_room_the_smallest_that_suffices_is_taken():
    free = Capacity(8, (Device(80 * GIB, 80 * GIB), Device(24 * GIB, 24 * GIB)))
    assert fit(Demand(1, 1, 0, 10 * GIB), free).gpus == (1,)
    assert fit(Demand(1, 1, 0, 30 * GIB), free).gpus == (0,)
    assert fit(Demand(1, 1), free).gpus == (0,), "unknown memory may be much: not where others left little"


def test_a_share_of_the_machine_is_of_what_work_takes_most_of():
    capacity = Capacity(10, (Device(8 * GIB, 8 * GIB),) * 4, 100 * GIB)
    assert share_of(Demand(1, 0, 50 * GIB), capacity) == 0.5
    assert share_of(Demand(1, 0.5), capacity) == 0.125
    assert share_of(Demand(1, 2), capacity) == 0.5
    assert share_of(Demand(1, 0, 0, 4 * GIB), capacity) == 0.125
    assert share_of(Demand(20), capacity) == 1


@given(st.lists(demands, max_size=20), demands, capacities)
def test_what_is_reserved_for_is_not_delayed_by_what_starts_meanwhile(others, wanted, capacity):
    """Whatever starts beside a reservation, the reserved work fits as soon as it would have without it."""
    if never_fits(wanted, capacity) is not None or wanted.cpus > capacity.cpus:
        return
    before = pack(others[:10], capacity)
    free = capacity
    for _, slot in before:
        free = free.take(slot)
    packing = Packing(free)
    if packing.offer(wanted) is not None:
        return
    packing.reserve(wanted, capacity)
    started = [slot for demand in others[10:] if (slot := packing.offer(demand)) is not None]
    after = capacity  # all that ran before has ended, and all that started since still runs
    for slot in started:
        after = after.take(slot)
    assert fit(wanted, after) is not None
