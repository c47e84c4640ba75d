"""The queue: teachers first, fairly between suites, long jobs first, nobody starved, and never more than there is."""

from __future__ import annotations

import random
from dataclasses import replace
from statistics import fmean

import pytest

from kdbench.schedule import packing
from kdbench.schedule.order import PATIENCE, Preparation, Queue
from kdbench.schedule.packing import Capacity, Demand, Device, share_of
from tests.helpers.simulation import (
    GIB,
    Simulation,
    item,
    lower_bound,
    queue_of,
    random_capacity,
    random_part,
    random_work,
    some_job,
)

ONE = Demand(1)


def order(queue: Queue, capacity: Capacity | None = None) -> list[str]:
    """In which order a machine that runs one at a time starts what waits."""
    seconds = {each.id: each.seconds or 1.0 for each in queue}
    return list(Simulation(capacity or Capacity(1), seconds).run(queue).started)


# --- the order --------------------------------------------------------------------------------------------------------


def test_long_jobs_start_first_and_unknown_ones_before_them():
    seconds = {"short": 1.0, "new": None, "long": 9.0, "newer": None, "middle": 5.0}
    queue = queue_of(Capacity(1), [item(id, ONE, seconds=length) for id, length in seconds.items()])
    assert [each.id for each in queue] == ["new", "newer", "long", "middle", "short"]
    assert order(queue) == ["new", "newer", "long", "middle", "short"]


def test_equal_jobs_start_in_the_order_of_the_plan_whenever_they_are_added():
    items = [item(str(number), ONE, seconds=1) for number in range(5)]
    for number, each in enumerate(items):
        each.number = number
    queue = queue_of(Capacity(1), [items[position] for position in (3, 0, 4, 2, 1)])
    assert order(queue) == ["0", "1", "2", "3", "4"]


def test_teachers_start_before_everything_and_first_the_one_that_most_wait_for():
    queue = queue_of(Capacity(1), [item("job", ONE, suites=("b",))])
    for id, awaited in (("few", 2), ("many", 30)):
        teacher = item(id, Demand(1, memory=GIB), suites=("a", "b"))
        teacher.preparation, teacher.awaited = Preparation(some_job(), (id,)), awaited
        queue.add(teacher)
    assert [each.id for each in queue] == ["many", "few", "job"]
    assert order(queue, Capacity(1, memory=GIB)) == ["many", "few", "job"]


def test_what_had_its_turn_goes_first_in_its_suite():
    queue = queue_of(Capacity(1), [item("long", ONE, seconds=9), item("new", ONE)])
    queue.add(item("again", ONE, seconds=1), first=True)
    assert order(queue) == ["again", "new", "long"]


def test_what_is_taken_out_or_replaced_does_not_start():
    queue = queue_of(Capacity(1), [item("a", ONE), item("b", ONE), item("c", ONE)])
    assert queue.remove("b") is not None
    assert queue.remove("b") is None
    larger = item("a", Demand(2))
    queue.add(larger)
    assert (len(queue), [each.id for each in queue]) == (2, ["c", "a"])
    assert [(each.id, slot.cpus) for each, slot in queue.take(Capacity(8))] == [("c", 1), ("a", 2)]
    assert (len(queue), queue.take(Capacity(8))) == (0, [])


def test_the_order_that_is_shown_is_the_order_of_starts():
    rng = random.Random(0)
    items = [
        item(
            str(n), ONE, suites=tuple(rng.sample("abc", rng.choice([1, 1, 2]))), seconds=rng.choice([None, 1, 2, 5, 9])
        )
        for n in range(60)
    ]
    queue = queue_of(Capacity(1), items)
    shown = [each.id for each in queue]
    assert shown == order(queue)


# --- never more than there is, and not much longer than it must be ----------------------------------------------------


def test_random_work_is_never_overcommitted_all_of_it_runs_and_the_makespan_is_near_the_lower_bound():
    """300 machines and workloads; ``Simulation`` looks at every step. No schedule beats the lower bound."""
    ratios = []
    for seed in range(300):
        rng = random.Random(seed)
        capacity = random_capacity(rng)
        items, durations = random_work(rng, capacity, rng.randint(1, 120), ("a", "b", "c")[: rng.randint(1, 3)])
        done = Simulation(capacity, durations).run(queue_of(capacity, items))
        assert set(done.ended) == set(durations)
        ratios.append(done.now / lower_bound(items, durations, capacity))
    assert max(ratios) < 2, f"workload {ratios.index(max(ratios))}"
    assert fmean(ratios) < 1.12


def test_random_work_survives_a_machine_that_shrinks_and_grows():
    """Nodes come and go, others use more and less of the devices; nothing starts where there is no room, and what can
    run at the end has run."""
    for seed in range(100):
        rng = random.Random(seed)
        capacity = random_capacity(rng)
        items, durations = random_work(rng, capacity, rng.randint(10, 60), ("a", "b"))
        sizes = [(moment, random_part(rng, capacity)) for moment in sorted(rng.uniform(0, 100) for _ in range(5))]
        done = Simulation(capacity, durations).run(queue_of(capacity, items), [*sizes, (110.0, capacity)])
        assert set(done.ended) == set(durations)


def test_equal_jobs_are_packed_as_well_as_any_list_schedule():
    """Graham's bound for jobs of one core, longest first: at most 4/3 of the best; here the ends are nearly equal."""
    rng = random.Random(1)
    durations = {str(number): rng.uniform(1, 100) for number in range(200)}
    items = [item(id, ONE, seconds=seconds) for id, seconds in durations.items()]
    done = Simulation(Capacity(8), durations).run(queue_of(Capacity(8), items))
    assert done.now < 1.02 * lower_bound(items, durations, Capacity(8))


def test_shares_and_memory_fill_the_devices():
    """Eight GPUs, shared by four, or by what memory allows: that many run at once."""
    gpus = Capacity(64, (Device(80 * GIB, 80 * GIB),) * 8, 512 * GIB)
    for demand, at_once in (
        (Demand(1, 0.25), 32),
        (Demand(1, 0.1), 64),
        (Demand(1, 0.25, 0, 30 * GIB), 16),
        (Demand(1, 2), 4),
    ):
        queue = queue_of(gpus, [item(str(number), demand) for number in range(100)])
        assert len(queue.take(gpus)) == at_once


# --- nobody starves ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("large", [Demand(8), Demand(1, 2), Demand(1, 1, 8 * GIB), Demand(0.5, 0, 16 * GIB)])
def test_an_endless_stream_of_small_jobs_does_not_keep_a_large_one_from_starting(large):
    rng = random.Random(0)
    capacity = Capacity(8, (Device(16 * GIB, 16 * GIB),) * 2, 16 * GIB)
    small = Demand(0.5, 0.25 if large.gpus else 0, GIB)
    queue = queue_of(capacity, [item(f"small-{number}", small, seconds=5) for number in range(2000)])
    queue.add(item("large", large, seconds=9))
    durations = {each.id: rng.uniform(1, 10) for each in queue}
    done = Simulation(capacity, durations).run(queue)
    before = list(done.started).index("large")
    assert before <= 16 + PATIENCE + 16, "what runs at first, what overtakes it, and what does not delay it"


def test_what_waits_for_a_device_keeps_only_that_from_others():
    capacity = Capacity(8, (Device(GIB, GIB), Device(GIB, GIB)))
    queue = queue_of(
        capacity, [large := item("large", Demand(1, 2)), item("cpu", Demand(6)), item("gpu", Demand(1, 0.5))]
    )
    large.overtaken = PATIENCE
    busy = Capacity(8, (Device(GIB, GIB, 0.5), Device(GIB, GIB)))
    assert [each.id for each, _ in queue.take(busy)] == ["cpu"], "a core stays free for the large job"
    queue.remove("large")
    assert [each.id for each, _ in queue.take(Capacity(2, busy.gpus))] == ["gpu"]


def test_work_that_can_never_run_holds_nothing_up():
    """Others took memory of the device since it was added, for as long as anybody knows."""
    queue = queue_of(Capacity(2, (Device(4 * GIB, 8 * GIB),)), [never := item("never", Demand(1, 0, 0, 6 * GIB))])
    never.overtaken = PATIENCE
    queue.add(item("other", Demand(1, 0, 0, 3 * GIB)))
    assert [each.id for each, _ in queue.take(queue.capacity)] == ["other"]
    queue.capacity = Capacity(2, (Device(8 * GIB, 8 * GIB),))
    assert [each.id for each, _ in queue.take(queue.capacity)] == ["never"]


@pytest.mark.parametrize("smaller", [Capacity(2, (Device(),)), Capacity(4)])
def test_what_was_reserved_for_holds_nothing_up_after_the_machine_has_become_too_small_for_it(smaller):
    queue = queue_of(Capacity(4, (Device(),)), [large := item("large", Demand(4, 1)), item("small", ONE)])
    large.overtaken = PATIENCE
    assert queue.take(Capacity(1, (Device(),))) == []
    queue.capacity = smaller
    assert [each.id for each, _ in queue.take(replace(smaller, cpus=1, memory=0))] == ["small"]


# --- fair between suites ----------------------------------------------------------------------------------------------


def used(done: Simulation, items, capacity: Capacity, now: float) -> dict[str, float]:
    """Machine seconds of each suite up to a moment."""
    total: dict[str, float] = {}
    for each in items:
        if each.id in done.started:
            spent = max(0.0, min(now, done.ended.get(each.id, now)) - done.started[each.id])
            for suite in each.suites:
                total[suite] = total.get(suite, 0.0) + spent * share_of(each.demand, capacity) / len(each.suites)
    return total


@pytest.mark.parametrize(
    ("known", "least"),
    [(1.0, 0.95), (0.0, 0.95), (0.1, 0.75), (10.0, 0.75)],
    ids=["right", "unknown", "too short", "too long"],
)
def test_suites_have_equal_parts_of_the_machine_however_long_their_jobs_are(known, least):
    """Wrong expectations count only while the jobs run."""
    rng = random.Random(3)
    capacity = Capacity(8)
    durations, items = {}, []
    for suite, count, seconds in (("short", 4000, 1.0), ("long", 200, 20.0), ("middle", 800, 5.0)):
        for number in range(count):
            id = f"{suite}-{number}"
            durations[id] = seconds * rng.uniform(0.5, 1.5)
            expected = durations[id] * known if known else None
            items.append(item(id, ONE, suites=(suite,), seconds=expected))
    done = Simulation(capacity, durations).run(queue_of(capacity, items))
    for moment in (0.6, 0.8):
        shares = used(done, items, capacity, moment * done.now)
        assert min(shares.values()) > least * max(shares.values()), (moment, shares)


def test_a_large_suite_does_not_delay_a_small_one():
    durations = {f"large-{number}": 1.0 for number in range(1000)} | {f"small-{number}": 1.0 for number in range(20)}
    items = [item(id, ONE, suites=(id.partition("-")[0],)) for id in durations]
    done = Simulation(Capacity(4), durations).run(queue_of(Capacity(4), items))
    assert max(end for id, end in done.ended.items() if id.startswith("small")) <= 2 * 20 / 4 + 1


def test_a_job_of_two_suites_runs_once_and_counts_half_for_each():
    capacity = Capacity(1)
    items = [item(f"both-{n}", ONE, suites=("a", "b"), seconds=2) for n in range(10)]
    items += [item(f"c-{n}", ONE, suites=("c",), seconds=1) for n in range(10)]
    done = Simulation(capacity, {each.id: each.seconds for each in items}).run(queue_of(capacity, items))
    assert len(done.ended) == 20
    shares = used(done, items, capacity, 15)
    assert shares["a"] == shares["b"] == pytest.approx(shares["c"], abs=1)


def test_work_that_was_taken_but_did_not_start_costs_its_suite_nothing():
    queue = queue_of(
        Capacity(1), [item(f"{suite}{n}", ONE, suites=(suite,), seconds=5) for suite in "ab" for n in "12"]
    )
    ((first, _),) = queue.take(Capacity(1))
    queue.charge(first, 0.0)
    assert first.id == "a1"
    assert [each.id for each in queue] == ["a2", "b1", "b2"], "as if nothing had been taken"


def test_what_is_counted_for_running_work_is_taken_back_whole_where_the_machine_changed_meanwhile():
    queue = queue_of(
        Capacity(4), [item(f"{suite}{n}", ONE, suites=(suite,), seconds=10) for suite in "ab" for n in "12"]
    )
    ((first, _),) = queue.take(Capacity(1))
    queue.capacity = Capacity(0)
    queue.charge(first, 0.0)
    queue.capacity = Capacity(1)
    assert [each.id for each in queue] == ["a2", "b1", "b2"]


# --- cost -------------------------------------------------------------------------------------------------------------


def test_a_full_machine_costs_nothing_and_a_partly_full_one_as_much_as_there_are_kinds(monkeypatch):
    looks = 0
    fit = packing.fit

    def counted(demand, free):
        nonlocal looks
        looks += 1
        return fit(demand, free)

    monkeypatch.setattr(packing, "fit", counted)
    rng = random.Random(0)
    kinds = [Demand(1, 1, memory) for memory in range(12)]
    capacity = Capacity(64, (Device(),) * 8, 10_000)
    queue = queue_of(capacity, [item(str(n), rng.choice(kinds), seconds=rng.random()) for n in range(10_000)])
    assert len(queue.take(capacity)) == 8
    assert looks <= 8 + len(kinds)
    full = Capacity(64, (Device(share=0),) * 8, 10_000)
    looks = 0
    assert queue.take(full) == []
    assert looks == len(kinds)
    for _ in range(100):
        assert queue.take(full) == []
        assert queue.take(Capacity(0, full.gpus, 10_000)) == []
    assert looks <= len(kinds) + 200 * len(kinds) // 100, "a machine that is as full as before is not looked at again"
