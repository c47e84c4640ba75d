"""A run that learns: the first jobs of a kind say how the others are packed and ordered."""

from __future__ import annotations

import pytest

from kdbench.history import Experience
from kdbench.job import Failure, Resources
from kdbench.schedule.learning import Learning, room_of
from kdbench.schedule.order import Item, Queue
from kdbench.schedule.packing import Capacity, Demand, Device
from kdbench.store.index import Likeness, Taken
from tests.helpers.outcomes import make_job, make_outcome
from tests.schedule.fake import Clock, Does, FakeExecutor, fake_loop

GIB = 1 << 30
MACHINE = Capacity(4.0, (), 8 * GIB)
GPU_OOM = Failure(type="OutOfMemoryError", message="CUDA out of memory")


def run(results, jobs, does, capacity):
    executor = FakeExecutor(capacity, Clock(), does)
    result = fake_loop(results, jobs, executor).go()
    assert not result.left
    return executor, {outcome.job.seed: outcome for outcome in result.outcomes}


def at_once(executor):
    """How much runs when each piece of work has started."""
    return [sum(other.started <= ran.started < other.ended for other in executor.ran) for ran in executor.ran]


def test_after_one_shared_gpu_was_too_small_the_other_jobs_are_not_put_together_like_that(tmp_path):
    """Each takes 6 of 16 GiB: four quarters of a device do not fit, whatever the suite says."""
    jobs = [make_job(seed=seed, resources=Resources(gpus=0.25)) for seed in range(20)]
    need = {"peak_gpu_bytes": 6.0 * GIB}

    def does(work):
        if len(executor.running) > 2:
            return Does(1.0, status="oom", error=GPU_OOM, cost=need)
        return Does(10.0, cost=need)

    executor = FakeExecutor(Capacity(8.0, (Device(16 * GIB, 16 * GIB),), 64 * GIB), Clock(), does)
    result = fake_loop(tmp_path, jobs, executor).go()
    assert result.exit_code == 0
    retried = [outcome for outcome in result.outcomes if outcome.attempts > 1]
    assert 1 <= len(retried) <= 4, "only of those that were started before anything was known"
    assert max(at_once(executor)[8:]) == 1, "two would leave no room for what CUDA itself takes"


def test_unknown_kinds_are_tried_first_and_then_the_longest_goes_first(tmp_path):
    seconds = {"short": 1.0, "long": 30.0, "middle": 10.0}
    jobs = [make_job(method, seed) for method in seconds for seed in range(3)]
    executor, _ = run(tmp_path, jobs, lambda work: Does(seconds[work.job.label]), Capacity(1.0, (), GIB))
    assert [ran.work.job.label for ran in executor.ran] == [
        "short", "long", "middle", "long", "long", "middle", "middle", "short", "short",
    ]  # fmt: skip


def test_more_jobs_run_at_once_where_they_need_less_than_an_equal_share(tmp_path):
    jobs = [make_job(seed=seed, resources=Resources(cpus=0.25)) for seed in range(32)]
    wide = Capacity(1.0, (), 4 * GIB)
    executor, _ = run(tmp_path, jobs, lambda work: Does(10.0, cost={"peak_rss_bytes": 3.0 * GIB}), wide)
    assert max(at_once(executor)[:4]) == 4
    assert max(at_once(executor)[8:]) == 1, "each needs most of the machine"
    assert {ran.work.memory_limit for ran in executor.ran[8:]} == {4 * GIB}


class Counted(Queue):
    """Counts what is lined up anew."""

    anew = 0

    def add(self, item, *, first=False):
        self.anew += 1
        super().add(item, first=first)


def learning_about(jobs):
    queue = Counted(MACHINE)
    learning = Learning(queue, lambda demand: None)
    for job in jobs:
        item = Item(job.id, job, Demand(1.0, memory=GIB), ("suite",))
        queue.add(item)
        learning.watch(item, None)
    return queue, learning


def learned(queue, learning, job, **outcome):
    """How many jobs were lined up anew for an outcome."""
    before = queue.anew
    learning.learn(make_outcome(job, **outcome))
    return queue.anew - before


def test_like_jobs_are_lined_up_anew_only_where_that_makes_a_difference():
    jobs = [make_job(seed=seed) for seed in range(1000)]
    queue, learning = learning_about(jobs)
    told = [
        learned(queue, learning, job, cost={"peak_rss_bytes": 1e9 + job.seed}, minutes=1 + job.seed % 7 / 20)
        for job in jobs
    ]
    assert told[0] == 999, "all that are still to do"
    assert sum(map(bool, told)) <= 2, "bytes and seconds more are no news"
    assert {item.seconds for item in queue if item.id != jobs[0].id} <= {60.0, 61.5, 63.0}


def test_more_memory_and_other_times_are_learned_at_once_and_failures_teach_nothing():
    jobs = [make_job(seed=seed) for seed in range(10)]
    queue, learning = learning_about(jobs)
    assert learned(queue, learning, jobs[0], status="failed") == 0
    ends = [(1e9, 1.0, True), (1e9, 1.0, False), (1e9, 1.1, False), (2e9, 1.0, True), (1e9, 5.0, True)]
    for job, (peak, minutes, news) in zip(jobs[1:], ends, strict=False):
        assert bool(learned(queue, learning, job, cost={"peak_rss_bytes": peak}, minutes=minutes)) is news
    assert learned(queue, learning, make_job("other"), cost={"peak_rss_bytes": 5e9}) == 0


def test_what_is_learned_never_stops_work_that_could_be_tried():
    experience, job = Experience(), make_job()
    experience.add(Likeness.of(job), "ok", Taken(1.0, 3 * GIB))
    expectation = experience.expect(Likeness.of(job))
    small = lambda demand: "is too large" if demand.memory > 2 * GIB else None  # noqa: E731
    demand, _, reason = room_of(Resources(), Capacity(4.0, (), 8 * GIB), expectation, small)
    assert (demand.memory, reason) == (2 * GIB, None)
    assert room_of(Resources(memory=3 * GIB), Capacity(4.0, (), 8 * GIB), expectation, small)[2] == "is too large"


@pytest.mark.parametrize("status", ["ok", "oom"])
def test_a_job_that_is_tried_once_more_keeps_what_it_was_given_for_that(tmp_path, status):
    """What others teach meanwhile does not take the machine from it again."""
    jobs = [make_job(seed=seed) for seed in range(6)]
    short = Does(1.0, status="oom", error=Failure(type="oom", message="too much"), cost={"peak_rss_bytes": 1.0 * GIB})
    executor, outcomes = run(
        tmp_path,
        jobs,
        lambda work: (short if work.attempt == 1 else Does(status=status)) if work.job.seed == 0 else Does(3.0),
        Capacity(2.0, (), 8 * GIB),
    )
    again = next(ran for ran in executor.ran if ran.work.attempt == 2)
    assert again.work.slot.memory == 8 * GIB
    assert (outcomes[0].status, outcomes[0].attempts) == (status, 2)
