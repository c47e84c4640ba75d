"""The loop in virtual time: order, teachers, retries, machines that come and go, requests, interruptions, two runs."""

from __future__ import annotations

import errno
import logging
import random
import signal
import threading

import pytest

from kdbench.errors import UsageError
from kdbench.history import Expectation
from kdbench.hookspecs import hookimpl
from kdbench.job import Failure, Resources
from kdbench.schedule import attempts
from kdbench.schedule.order import Preparation
from kdbench.schedule.packing import Capacity, Device
from kdbench.schedule.retries import ATTEMPTS
from kdbench.store import spool
from tests.helpers.outcomes import make_job, make_outcome, put
from tests.schedule.fake import Clock, Does, FakeExecutor, Told, Wishes, assert_within, fake_loop, statuses

GIB = 1 << 30
TWO = Capacity(2.0, (), 8 * GIB)
OOM = Failure(type="oom", message="it used more than 4.0 GiB")
GPU_OOM = Failure(type="OutOfMemoryError", message="CUDA out of memory")


@pytest.fixture
def results(tmp_path):
    return tmp_path / "results"


def jobs_of(count, **more):
    return [make_job(seed=seed, **more) for seed in range(count)]


def executor_of(does=lambda work: Does(), capacity=TWO):
    return FakeExecutor(capacity, Clock(), does)


def left_running(results):
    return sorted(path.name for path in attempts.running_folder(results).iterdir())


# --- what a run is ----------------------------------------------------------------------------------------------------


def test_every_job_runs_once_and_the_hooks_are_told_in_order(results):
    told, jobs = Told(), jobs_of(3)
    executor = executor_of(lambda work: Does(seconds=1.0, steps=1))
    result = fake_loop(results, jobs, executor, hooks=[told]).go()
    assert result.exit_code == 0
    assert statuses(results) == {job.id: "ok" for job in jobs}
    assert executor.clock.now == 2.0, "two at a time"
    for seed in range(3):
        mine = [line for line in told.said if line.split()[1] == str(seed)]
        assert mine == [f"started {seed} 1", f"step {seed} 1", f"usage {seed} {2**20:g}", f"ok {seed}"]
    assert told.said[-1] == "finished 3"
    assert executor.closed
    assert left_running(results) == []


def test_random_workloads_end_with_one_outcome_each_and_are_never_over_committed(results):
    """The executor complains where slots are given twice; jobs crash, run out of memory and get lost by chance."""
    for case in range(40):
        random.seed(case)
        capacity = Capacity(4.0, tuple(Device(16 * GIB, 16 * GIB) for _ in range(random.randrange(3))), 32 * GIB)
        choices = [Resources(cpus=random.choice([0.5, 1, 3])) for _ in range(3)]
        if capacity.gpus:
            choices += [Resources(gpus=0.25), Resources(gpus=len(capacity.gpus)), Resources(gpu_memory=6 * GIB)]
        jobs = [make_job(seed=seed, resources=random.choice(choices)) for seed in range(random.randrange(1, 12))]
        ends = [
            Does(),
            Does(status="failed"),
            Does(status="oom", error=GPU_OOM),
            Does(status=None, ended={"reason": "oom", "message": "too much"}),
            Does(status=None, ended={"reason": "lost", "message": "gone"}),
            Does(status=None, ended={"signal": "SIGSEGV"}),
        ]
        fates = {job.id: [random.choice(ends) for _ in range(3)] for job in jobs}
        executor = executor_of(lambda work, fates=fates: fates[work.id][(work.attempt - 1) % 3], capacity)
        folder = results / str(case)
        result = fake_loop(folder, jobs, executor).go()
        assert set(statuses(folder)) == {job.id for job in jobs}, f"case {case}"
        assert not result.left
        assert left_running(folder) == []
        assert max(ran.work.attempt for ran in executor.ran) <= ATTEMPTS + 1
        for outcome in result.outcomes:
            tries = [ran for ran in executor.ran if ran.work.id == outcome.id]
            assert outcome.attempts == len(tries)
            assert len(outcome.provenance.get("retried", [])) == len(tries) - 1


def test_long_jobs_start_first_and_unknown_ones_before_them(results):
    jobs = [make_job(f"method{seed}", seed) for seed in range(4)]
    expected = {job.id: Expectation(seconds) for job, seconds in zip(jobs, (1.0, 50.0, None, 10.0), strict=True)}
    executor = executor_of(capacity=Capacity(1.0, (), GIB))
    fake_loop(results, jobs, executor, expected=expected).go()
    assert executor.seeds() == [2, 1, 3, 0]


def test_memory_learned_from_the_past_decides_how_many_run_at_once_and_is_no_limit(results):
    jobs = [make_job(seed=seed, resources=Resources(cpus=0.1)) for seed in range(6)]
    capacity = Capacity(1.0, (), 12 * GIB)
    expected = dict.fromkeys([job.id for job in jobs], Expectation(1.0, memory=2 * GIB))
    executor = executor_of(capacity=capacity)
    fake_loop(results, jobs, executor, expected=expected).go()
    at_once = [sum(ran.started == start for ran in executor.ran) for start in {ran.started for ran in executor.ran}]
    assert max(at_once) == 4, "each takes 2 GiB and a reserve, not the 1.2 GiB that are its share"
    assert all(ran.work.memory_limit >= ran.work.slot.memory for ran in executor.ran)


def test_suites_of_one_run_share_the_machine_and_their_common_jobs_run_once(results):
    jobs = jobs_of(60)
    suites = {"long": jobs[:50], "short": jobs[45:]}
    executor = executor_of()
    fake_loop(results, jobs, executor, suites=suites).go()
    assert sorted(executor.seeds()) == list(range(60))
    last = max(executor.seeds().index(seed) for seed in range(45, 60))
    assert last < 40, "the small suite does not wait for the large one"


def test_a_job_that_can_never_run_here_is_said_before_anything_starts(results):
    executor = executor_of()
    with pytest.raises(UsageError, match="8 GPUs, but there is none"):
        fake_loop(results, [make_job(resources=Resources(gpus=8))], executor)
    assert executor.ran == []


def test_what_the_executor_needs_to_know_comes_with_the_work(results):
    job = make_job(timeout=77.0, heartbeat=5.0, resources=Resources(memory=3 * GIB))
    executor = executor_of()
    fake_loop(results, [job], executor, needs={job.spec_digest: ("[a, b]",)}).go()
    work = executor.ran[0].work
    assert (work.timeout, work.heartbeat, work.memory_limit, work.needs) == (77.0, 5.0, 3 * GIB, ("[a, b]",))


# --- teachers ---------------------------------------------------------------------------------------------------------


def with_teachers(jobs, needs=("one",)):
    """Preparations for the jobs of each task name, all of which need ``needs`` and their own teacher."""
    preparations, waits = {}, {}
    for job in jobs:
        preparation = preparations.setdefault(job.task, Preparation(job, (*needs, job.task)))
        waits[job.id] = preparation.id
    return list(preparations.values()), waits


def test_jobs_wait_for_their_teacher_and_one_builds_it_at_a_time(results):
    alone = jobs_of(1, method="alone")
    jobs = [*jobs_of(2, task="vision/a"), *jobs_of(3, task="vision/b")]
    preparations, waits = with_teachers(jobs)
    executor = executor_of(lambda work: Does(10.0 if work.kind == "prepare" else 1.0), Capacity(4.0, (), 8 * GIB))
    result = fake_loop(results, [*alone, *jobs], executor, preparations=preparations, waits=waits).go()
    assert result.exit_code == 0
    first, second = [ran for ran in executor.ran if ran.work.kind == "prepare"]
    assert first.work.job.task == "vision/b", "more jobs wait for it"
    assert second.started >= first.ended, "both need the teacher that they share"
    assert executor.ran[1].work.job == alone[0], "what needs no teacher does not wait"
    for ran in executor.ran:
        if ran.work.id in waits and ran.work.job.task == "vision/a":
            assert ran.started >= second.ended


def test_a_teacher_that_another_run_made_is_not_made_again(results):
    jobs = jobs_of(2)
    preparations, waits = with_teachers(jobs)
    executor = executor_of()
    result = fake_loop(results, jobs, executor, preparations=preparations, waits=waits, present=lambda need: True).go()
    assert result.exit_code == 0
    assert [ran.work.kind for ran in executor.ran] == ["job", "job"]


def test_jobs_of_a_teacher_that_cannot_be_made_have_its_reason_and_its_log(results):
    jobs = jobs_of(2)
    preparations, waits = with_teachers(jobs)
    executor = executor_of(lambda work: Does(log="deep\nValueError: no data\n", ended={"code": 1}))
    result = fake_loop(results, jobs, executor, preparations=preparations, waits=waits).go()
    assert result.exit_code == 1
    for outcome in result.outcomes:
        assert (outcome.status, outcome.error.type) == ("failed", "teacher")
        assert "ValueError: no data" in outcome.error.message
        assert "deep" in (spool.job_folder(results, outcome.id) / "log.txt").read_text()


def test_a_teacher_that_ran_out_of_memory_is_made_alone_and_then_its_jobs_run(results):
    jobs = jobs_of(2)
    preparations, waits = with_teachers(jobs)

    def does(work):
        short = work.kind == "prepare" and work.attempt == 1
        return Does(log="MemoryError\n", ended={"code": 1}) if short else Does()

    executor = executor_of(does)
    assert fake_loop(results, jobs, executor, preparations=preparations, waits=waits).go().exit_code == 0
    first, again = [ran.work for ran in executor.ran if ran.work.kind == "prepare"]
    assert (first.slot.memory, again.slot.memory, again.memory_limit) == (4 * GIB, 8 * GIB, 8 * GIB)


# --- retries ----------------------------------------------------------------------------------------------------------


def test_out_of_memory_is_tried_once_more_alone_and_the_outcome_says_so(results, caplog):
    told = Told()
    does = {1: Does(3.0, status="oom", error=OOM), 2: Does(4.0)}
    executor = executor_of(lambda work: does[work.attempt] if work.job.seed == 1 else Does())
    result = fake_loop(results, jobs_of(5), executor, hooks=[told]).go()
    assert result.exit_code == 0
    second = next(ran for ran in executor.ran if ran.work.attempt == 2)
    assert second.work.slot.memory == second.work.memory_limit == TWO.memory
    others = [ran for ran in executor.ran if ran is not second]
    assert all(ran.ended <= second.started or ran.started >= second.ended for ran in others), "nothing ran beside it"
    outcome = next(outcome for outcome in result.outcomes if outcome.job.seed == 1)
    assert outcome.attempts == 2
    assert outcome.provenance["retried"] == [{"status": "oom", "message": OOM.message, "seconds": 3.0}]
    assert "attempt 2" in (spool.job_folder(results, outcome.id) / "log.txt").read_text()
    assert [line for line in told.said if line.endswith(("1 1", "1 2")) or line == "ok 1"] == [
        "started 1 1",
        "started 1 2",
        "ok 1",
    ]
    assert "tried once more alone" in caplog.text


def test_a_shared_gpu_that_was_too_small_is_replaced_by_one_of_its_own(results):
    capacity = Capacity(8.0, (Device(16 * GIB, 16 * GIB), Device(16 * GIB, 16 * GIB)), 64 * GIB)
    jobs = [make_job(seed=seed, resources=Resources(gpus=0.25)) for seed in range(8)]
    executor = executor_of(
        lambda work: Does(status="oom", error=GPU_OOM) if work.job.seed == 3 else Does(seconds=2.0), capacity
    )
    result = fake_loop(results, jobs, executor).go()
    tries = [ran.work.slot for ran in executor.ran if ran.work.job.seed == 3]
    assert [slot.share for slot in tries] == [0.25, 1.0]
    outcome = next(outcome for outcome in result.outcomes if outcome.job.seed == 3)
    assert (outcome.status, outcome.attempts) == ("oom", 2), "and what fails there too is final"


def test_lost_work_starts_again_and_is_given_up_after_three_machines(results):
    gone = Does(status=None, ended={"reason": "lost", "message": "the node died"})
    executor = executor_of(lambda work: gone if work.job.seed == 0 or work.attempt == 1 else Does())
    result = fake_loop(results, jobs_of(2), executor).go()
    first, second = result.outcomes
    assert (first.status, first.error.type, first.attempts) == ("crashed", "lost", 3)
    assert (second.status, second.attempts) == ("ok", 2)
    assert [earlier["message"] for earlier in first.provenance["retried"]] == ["the node died"] * 2


def test_a_job_that_had_just_finished_is_not_lost_with_its_machine(results):
    executor = executor_of(lambda work: Does(ended={"reason": "lost", "message": "gone"}))
    result = fake_loop(results, jobs_of(1), executor).go()
    assert [(o.status, o.attempts) for o in result.outcomes] == [("ok", 1)]


def test_a_result_that_is_written_while_the_job_is_ended_for_its_time_is_none(results):
    executor = executor_of(lambda work: Does(ended={"reason": "timeout", "message": "longer than 1 second"}))
    assert fake_loop(results, jobs_of(1), executor).go().outcomes[0].status == "timeout"


# --- machines that come and go ----------------------------------------------------------------------------------------


def test_a_machine_that_comes_is_used_and_one_that_goes_gives_its_jobs_back(results):
    executor = executor_of(lambda work: Does(seconds=10.0))
    executor.at(5.0, lambda: executor.resize(Capacity(4.0, (), 16 * GIB)))
    executor.at(12.0, lambda: executor.resize(Capacity(1.0, (), 4 * GIB), *executor.running[:3]))
    result = fake_loop(results, jobs_of(6), executor).go()
    assert result.exit_code == 0
    starts = [ran.started for ran in executor.ran]
    assert starts[:2] == [0.0, 0.0]
    assert [start for start in starts if 5.0 <= start < 10.0], "the new machine has work at once"
    later = [ran for ran in executor.ran if ran.started >= 12.0]
    assert all(sum(other.started <= ran.started < other.ended for other in executor.ran) <= 1 for ran in later), (
        "one at a time on what is left"
    )
    assert sorted(outcome.attempts for outcome in result.outcomes) == [1, 1, 1, 2, 2, 2]


def test_work_that_nothing_is_left_for_waits_and_says_so_once(results, caplog):
    gpu = (Device(16 * GIB, 16 * GIB),)
    nothing = Capacity(2.0, (Device(0, 0, 0.0),), 8 * GIB)
    executor = executor_of(lambda work: Does(seconds=3.0), Capacity(2.0, gpu, 8 * GIB))
    executor.at(1.0, lambda: executor.resize(nothing))
    executor.at(500.0, lambda: executor.resize(Capacity(2.0, gpu, 8 * GIB)))
    jobs = [make_job(seed=seed, resources=Resources(gpus=1)) for seed in range(3)]
    result = fake_loop(results, jobs, executor).go()
    assert result.exit_code == 0
    assert [ran.started >= 500.0 for ran in executor.ran] == [False, True, True]
    assert caplog.text.count("2 jobs can only wait") == 1
    assert_within(executor._free)


def test_what_asked_for_all_of_a_machine_that_went_asks_for_all_that_is_left(results):
    """One job waits to be tried alone, one wants more cores than are left, one shares what there is."""
    big = make_job("big", resources=Resources(cpus=16))
    jobs = [*jobs_of(2), big]
    expected = {big.id: Expectation(0.5)}  # the shortest: it waits

    def does(work):
        short = work.job.method == jobs[0].method and work.job.seed == 0 and work.attempt == 1
        return Does(1.0, status="oom", error=OOM) if short else Does(10.0)

    executor = executor_of(does, Capacity(4.0, (), 16 * GIB))
    expected |= dict.fromkeys([job.id for job in jobs[:2]], Expectation(5.0))
    executor.at(2.0, lambda: executor.resize(Capacity(1.0, (), 4 * GIB)))
    result = fake_loop(results, jobs, executor, expected=expected).go()
    assert result.exit_code == 0
    alone = next(ran.work.slot for ran in executor.ran if ran.work.attempt == 2)
    wide = next(ran.work.slot for ran in executor.ran if ran.work.job == big)
    assert (alone.cpus, alone.memory) == (1.0, 4 * GIB)
    assert (wide.cpus, wide.memory) == (1.0, 4 * GIB)


# --- requests ---------------------------------------------------------------------------------------------------------


def test_a_job_can_be_cancelled_wherever_it_is(results):
    wishes, told, jobs = Wishes(), Told(), jobs_of(4)
    preparations, waits = with_teachers(jobs[3:])
    executor = executor_of(lambda work: Does(seconds=100.0, stubborn=2.0), Capacity(1.0, (), 8 * GIB))
    running, waiting, behind_teacher = jobs[0], jobs[2], jobs[3]
    executor.at(110.0, lambda: wishes.posted.extend([running.id, waiting.id, behind_teacher.id, "no-such-job"]))
    loop = fake_loop(results, jobs, executor, preparations=preparations, waits=waits, asked=wishes, hooks=[told])
    result = loop.go()
    assert statuses(results) == {
        running.id: "interrupted",
        jobs[1].id: "ok",
        waiting.id: "interrupted",
        behind_teacher.id: "interrupted",
    }
    assert (result.exit_code, result.signal) == (1, None)
    assert {job.id for job in result.left} == {running.id, waiting.id, behind_teacher.id}, "the next run does them"
    assert result.failed == []
    assert [line for line in told.said if line.startswith("interrupted")] == [
        "interrupted 2",
        "interrupted 3",
        "interrupted 0",
    ]
    assert left_running(results) == []


def test_a_teacher_is_not_made_when_all_its_jobs_are_cancelled(results):
    wishes, jobs = Wishes(), jobs_of(1, task="vision/b")
    blocker = make_job("other")
    preparations, waits = with_teachers(jobs)
    executor = executor_of(lambda work: Does(10.0), Capacity(1.0, (), GIB))
    loop = fake_loop(results, [blocker, *jobs], executor, preparations=preparations, waits=waits, asked=wishes)
    wishes.posted.append(jobs[0].id)
    assert [job.id for job in loop.go().left] == [jobs[0].id]
    assert [ran.work.id for ran in executor.ran] == [blocker.id]


def test_a_cancelled_job_keeps_the_outcome_that_it_had(results):
    job = make_job()
    before = put(results, make_outcome(job, 0.9))[0]
    wishes = Wishes()
    executor = executor_of(lambda work: Does(seconds=100.0))
    executor.at(5.0, lambda: wishes.posted.append(job.id))
    result = fake_loop(results, [job], executor, done={job.id: "ok"}, asked=wishes).go()
    assert spool.read_outcome(spool.job_folder(results, job.id)) == before
    assert result.statuses == {job.id: "ok"}


def test_a_job_that_was_cancelled_is_not_tried_once_more(results):
    job, wishes = make_job(), Wishes()
    executor = executor_of(lambda work: Does(seconds=100.0, stubborn=1.0))
    executor.at(5.0, lambda: wishes.posted.append(job.id))
    executor.at(6.0, lambda: executor.resize(TWO, job.id))
    result = fake_loop(results, [job], executor, asked=wishes).go()
    assert len(executor.ran) == 1
    assert result.outcomes[0].status in ("interrupted", "crashed")


def test_a_run_that_is_cancelled_stops_as_with_ctrl_c(results):
    wishes = Wishes()
    executor = executor_of(lambda work: Does(seconds=5.0, stubborn=1.0))
    executor.at(7.0, lambda: wishes.posted.append(None))
    result = fake_loop(results, jobs_of(6), executor, asked=wishes).go()
    assert (result.signal, result.exit_code) == (signal.SIGINT, 130)
    assert len(result.outcomes) == 2
    assert len(result.left) == 4
    assert left_running(results) == []


# --- interruptions ----------------------------------------------------------------------------------------------------


def interrupted(results, times, **does):
    """A run of six jobs, two at a time and 10 seconds each, that gets a signal at each of the times."""
    executor = executor_of(lambda work: Does(seconds=10.0, **does))
    loop = fake_loop(results, jobs_of(6), executor)
    for after in times:
        executor.at(after, lambda: signal.raise_signal(signal.SIGINT))
    return executor, loop.go()


def test_one_interruption_asks_the_running_jobs_to_end(results):
    executor, result = interrupted(results, [15.0], stubborn=3.0)
    assert (result.signal, len(result.outcomes), len(result.left)) == (signal.SIGINT, 2, 4)
    assert len(executor.cancelled) == 2
    assert 18.0 <= executor.clock.now < 19.0
    assert len(executor.ran) == 4, "nothing new is started"
    assert left_running(results) == []


def test_what_finishes_while_the_run_stops_counts(results):
    _, result = interrupted(results, [15.0], stubborn=8.0)
    assert (len(result.outcomes), len(result.left)) == (4, 2)


def test_two_interruptions_end_everything_at_once(results):
    executor, result = interrupted(results, [15.0, 16.0], stubborn=30.0)
    assert executor.clock.now == 16.0
    assert (result.signal, len(result.outcomes), len(result.left)) == (signal.SIGINT, 2, 4)
    assert executor.closed
    assert left_running(results) == []


def test_a_job_that_was_to_be_tried_once_more_is_left_for_the_next_run(results):
    short = Does(5.0, status="oom", error=OOM)
    executor = executor_of(lambda work: short if work.job.seed == 0 and work.attempt == 1 else Does(seconds=20.0))
    executor.at(10.0, lambda: signal.raise_signal(signal.SIGINT))
    result = fake_loop(results, jobs_of(3), executor).go()
    assert len(result.left) == 3
    assert left_running(results) == [], "also what it held while it waited"


def test_an_interruption_while_the_end_is_told_leaves_the_result(results, caplog):
    class Slow:
        @hookimpl
        def kdbench_run_finished(self):
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)
            pytest.fail("the second signal interrupts what takes long")

    result = fake_loop(results, jobs_of(1), executor_of(), hooks=[Slow()]).go()
    assert result.statuses
    assert result.signal == signal.SIGINT
    assert "not all stores" in caplog.text


def test_a_second_interruption_while_everything_is_ended_still_tells_the_hooks(results):
    class Slow(FakeExecutor):
        def close(self):
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)
            super().close()

    told = Told()
    executor = Slow(TWO, Clock())
    result = fake_loop(results, jobs_of(1), executor, hooks=[told]).go()
    assert executor.closed
    assert told.said[-1] == "finished 1", "a display is put back"
    assert result.signal == signal.SIGINT


# --- disks, and other runs --------------------------------------------------------------------------------------------


def test_a_full_disk_ends_the_run_with_one_message_and_keeps_what_is_finished(results, monkeypatch):
    jobs = jobs_of(4)
    loop = fake_loop(results, jobs, executor_of())
    real = attempts.Claim.publish

    def publish(claim):
        if len(statuses(results)) == 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(claim)

    monkeypatch.setattr(attempts.Claim, "publish", publish)
    with pytest.raises(UsageError, match=r"cannot be written any more: No space left .*same command"):
        loop.go()
    assert len(statuses(results)) == 2
    assert left_running(results) == []
    assert loop.executor.closed


def test_jobs_of_another_run_are_waited_for_or_taken_over(results, caplog):
    """One job ends elsewhere, one is given up there; both were claimed when the run began."""
    jobs = jobs_of(3)
    told, executor = Told(), executor_of()
    loop = fake_loop(results, jobs, executor, hooks=[told])
    theirs = [attempts.claim(results, jobs[0].id), attempts.claim(results, jobs[1].id)]

    def finish():
        put(results, make_outcome(jobs[0], 0.7))
        theirs[0].release()

    executor.at(20.0, finish)
    executor.at(30.0, theirs[1].release)
    with caplog.at_level(logging.WARNING):
        result = loop.go()
    assert result.exit_code == 0
    assert executor.seeds() == [2, 1]
    assert executor.ran[1].started >= 30.0
    assert told.said.count("ok 0") == 1, "it is told of the other run's outcome"
    assert "can only wait" not in caplog.text


def test_runs_of_the_same_jobs_at_the_same_time_share_them(results):
    jobs, told = jobs_of(60), [Told() for _ in range(3)]
    executors = [executor_of(capacity=Capacity(1.0, (), GIB)) for _ in told]
    ends = []

    def go(number):
        ends.append(fake_loop(results, jobs, executors[number], hooks=[told[number]]).go())

    threads = [threading.Thread(target=go, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert [end.exit_code for end in ends] == [0, 0, 0]
    assert sorted(seed for executor in executors for seed in executor.seeds()) == list(range(60)), "each ran once"
    for one in told:
        assert len(one.outcomes) == 60, "each run knows of all"
    assert left_running(results) == []
