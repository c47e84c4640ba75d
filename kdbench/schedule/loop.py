"""The loop of a run: takes the jobs of a plan to their outcomes.

It hands waiting work to an executor in the order of its queue (``order``), puts what comes back into the spool
(``ledger``) or lines it up once more (``retries``), and tells the hooks (``events``). It holds no outcomes, only
their statuses.
"""

from __future__ import annotations

import logging
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import TYPE_CHECKING, Any

from kdbench.job import Failure, Job, Outcome, Place, Run, Status, utcnow
from kdbench.schedule import attempts, deaths
from kdbench.schedule.events import Events
from kdbench.schedule.executor import Ended, Event, Executor, Progress, Resized, Started, Usage, Work
from kdbench.schedule.interrupts import Interrupts
from kdbench.schedule.learning import Learning
from kdbench.schedule.ledger import Ending, Held, Ledger, stopped_by
from kdbench.schedule.lineup import line_up
from kdbench.schedule.order import Item, Preparation, Queue
from kdbench.schedule.packing import Capacity, Slot
from kdbench.schedule.result import RunResult
from kdbench.schedule.retries import Try, again

if TYPE_CHECKING:
    from kdbench.history import Expectation
    from kdbench.schedule.requests import Requests

log = logging.getLogger(__name__)

PAUSE = 0.25
"""Seconds that the loop waits at most for something to happen: how long Ctrl-C may take to be noticed."""
ELSEWHERE = 0.5
"""Seconds between two looks at jobs that another run has."""
REQUESTS = 0.5
"""Seconds between two looks at what people ask for."""
STOPPING = 60.0
"""Seconds after an interruption when the loop waits no more for an executor that does not end its work."""
TEACHER_TIME = 3600.0
"""Seconds that making a teacher may take at least, whatever the time of a job."""


@dataclass
class _Running:
    item: Item
    slot: Slot
    held: Held


class Loop:
    """One run. ``go`` is called once."""

    def __init__(
        self,
        run: Run,
        executor: Executor,
        events: Events,
        *,
        done: Mapping[str, Status],
        preparations: Sequence[Preparation] = (),
        waits: Mapping[str, str] | None = None,
        needs: Mapping[str, tuple[str, ...]] | None = None,
        expected: Mapping[str, Expectation] | None = None,
        present: Callable[[str], bool] = lambda need: False,
        provenance: Mapping[str, Any] | None = None,
        asked: Requests | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """``done`` are the outcomes of the plan's jobs before the run, those that are made again included.

        ``waits`` says by the id of a job which of the ``preparations`` (by id) it waits for, ``needs`` by the digest
        of a task's specification which cache entries its jobs read, ``expected`` by the id of a job what it is
        likely to take; ``present(need)`` whether a cache entry exists by now. ``clock`` gives seconds that never go
        back. Raises ``UsageError`` where a job can never run on this executor.
        """
        self.run = run
        self.executor = executor
        self.events = events
        self.needs = needs or {}
        self.present = present
        self.asked = asked
        self.clock = clock
        self.interrupts = Interrupts()
        todo = set(run.todo)
        self.ledger = Ledger(run.results, done, todo, provenance or {})
        self.statuses: dict[str, Status] = {id: status for id, status in done.items() if id not in todo}
        self.capacity = self.free = executor.capacity
        ready, waiting = line_up(
            run,
            self.capacity,
            executor.refuses,
            preparations=preparations,
            waits=waits or {},
            expected=expected or {},
        )
        self.queue = Queue(self.capacity)
        for item in ready:
            self.queue.add(item)
        self.waiting = waiting
        """Jobs that wait for a preparation, by its id."""
        self.learning = Learning(self.queue, executor.refuses)
        for item in chain(ready, *waiting.values()):
            self.learning.watch(item, (expected or {}).get(item.id))
        self.elsewhere: dict[str, Item] = {}
        """Work that another run has."""
        self.running: dict[str, _Running] = {}
        self.over: list[tuple[Job, Held, Ending]] = []
        """Jobs whose outcomes are still to be recorded; their slots are free again."""
        self.retrying: dict[str, Held] = {}
        """Of work that waits to be tried once more."""
        self.cancelled: set[str] = set()
        """Running work that somebody asked to cancel."""
        self._next_look = self._next_requests = 0.0
        self._stop_at: float | None = None
        self._stalled = False

    # --- the loop -----------------------------------------------------------------------------------------------------

    def go(self) -> RunResult:
        """Run until nothing is left or an interruption, and return what came of it.

        Raises ``UsageError`` where the results cannot be written any more or the executor cannot work.
        """
        result = RunResult(self.run, self.statuses)
        with self.interrupts:
            try:
                self.events.run_started()
                self._work()
            except KeyboardInterrupt:
                self.interrupts.number = self.interrupts.number or signal.SIGINT
            except OSError as error:
                raise stopped_by(error, self.run.results) from error
            finally:
                self._end(result)
        return result

    def _work(self) -> None:
        while self._unfinished():
            self._check_interruption()
            more = False
            if self._stop_at is None:
                self._look_at_requests()
                more = self._launch()
                self._look_elsewhere()
            more = self._record() or more
            for event in self.executor.poll(0.0 if more else PAUSE):
                self._handle(event)

    def _end(self, result: RunResult) -> None:
        """End what runs, give back what is held, and tell the hooks."""
        self.run.signal = result.signal = self.interrupts.number
        try:
            with self.interrupts.held():
                self.executor.close()
                over = [held for _, held, _ in self.over]
                for held in [*(running.held for running in self.running.values()), *self.retrying.values(), *over]:
                    held.claim.release()
                attempts.settle(self.run.results)
        except KeyboardInterrupt:
            self.run.signal = result.signal = self.interrupts.number or signal.SIGINT
        try:
            self.events.run_finished(result.outcomes)
        except KeyboardInterrupt:
            self.run.signal = result.signal = self.interrupts.number or signal.SIGINT
            log.warning("not all stores were told of the end of the run; they catch up when they are read")

    def _unfinished(self) -> bool:
        if self._stop_at is not None:
            return bool(self.over) or (bool(self.running) and self.clock() < self._stop_at)
        return bool(len(self.queue) or self.waiting or self.elsewhere or self.running or self.over)

    def _check_interruption(self) -> None:
        if self.interrupts.number is None or self._stop_at is not None:
            return
        self._stop_at = self.clock() + STOPPING
        if self.running:
            log.warning("stopping: %s may end in order; Ctrl-C once more ends all at once", _jobs(len(self.running)))
        for id in self.running:
            self.executor.cancel(id)

    # --- starting -----------------------------------------------------------------------------------------------------

    def _launch(self) -> bool:
        """Start what fits; returns whether more may fit, because some of it needs no slot after all."""
        taken = self.queue.take(self.free)
        started = [self._start(item, slot) for item, slot in taken]
        self._notice_stall(nothing=not taken)
        return not all(started)

    def _notice_stall(self, *, nothing: bool) -> None:
        """Say once when the run can only wait until others leave it something."""
        if not nothing or self.running or self.elsewhere:
            self._stalled = False
        elif len(self.queue) and not self._stalled:
            self._stalled = True
            self._line_up_anew()
            item = next(iter(self.queue))
            why = self.executor.refuses(item.demand) or "asks for more than is free now"
            name = item.job.label or item.job.method
            log.warning("%s can only wait: %s on %s %s", _jobs(len(self.queue)), name, item.job.task, why)

    def _line_up_anew(self) -> None:
        """Ask for what there is now: cores and memory that no job names are parts of all that there was."""
        for item in list(self.queue):
            if item.id not in self.retrying:
                self.queue.add(self.learning.improved(item))

    def _start(self, item: Item, slot: Slot) -> bool:
        """Start work on a slot that is free; returns False where there is nothing to start (now)."""
        held = self.retrying.pop(item.id, None) or (None if self._shares_teacher(item) else self.ledger.hold(item.id))
        if held is None or self._is_done(item):
            if held is None:
                self.elsewhere[item.id] = item
            else:
                held.claim.release()
            self.queue.charge(item, 0.0)
            return False
        held.started_at = utcnow()
        self.running[item.id] = _Running(item, slot, held)
        self.free = self.free.take(slot)
        job = item.job
        work = Work(
            item.id,
            "job" if item.preparation is None else "prepare",
            job,
            held.claim.clear(),
            slot,
            job.timeout if item.preparation is None else max(TEACHER_TIME, job.timeout),
            heartbeat=job.heartbeat,
            memory_limit=item.limit,
            attempt=held.attempt,
            needs=self.needs.get(job.spec_digest, ()),
        )
        self.executor.submit(work)
        return True

    def _shares_teacher(self, item: Item) -> bool:
        """Whether a teacher of this preparation is being made by another one, for which it can only wait."""
        if item.preparation is None:
            return False
        others = (other.item.preparation for other in self.running.values())
        return any(other is not None and not set(other.needs).isdisjoint(item.preparation.needs) for other in others)

    def _is_done(self, item: Item) -> bool:
        """Whether another run did it since the plan was made; takes note of it."""
        if item.preparation is not None:
            if all(self.present(need) for need in item.preparation.needs):
                self._prepared(item.preparation)
                return True
            return False
        outcome = self.ledger.by_others(item.id)
        if outcome is None:
            return False
        self._learn(outcome)
        self._finished(item.job, outcome)
        return True

    def _look_elsewhere(self) -> None:
        """Jobs that another run had: take note of their outcomes, or take over where it gave them up."""
        now = self.clock()
        if not self.elsewhere or now < self._next_look:
            return
        self._next_look = now + ELSEWHERE
        waiting, self.elsewhere = self.elsewhere, {}
        for item in waiting.values():
            if self._is_done(item):
                continue
            if self.ledger.is_free(item.id):
                self.queue.add(item, first=True)
            else:
                self.elsewhere[item.id] = item

    # --- what people ask for ------------------------------------------------------------------------------------------

    def _look_at_requests(self) -> None:
        now = self.clock()
        if self.asked is None or now < self._next_requests:
            return
        self._next_requests = now + REQUESTS
        for id in self.asked.new():
            if id is None:
                self.interrupts.number = self.interrupts.number or signal.SIGINT
            else:
                self._cancel(id)

    def _cancel(self, id: str) -> None:
        """Cancel one job of the run, wherever it is. It ends as ``interrupted``, which the next run does again."""
        if id in self.running:
            self.cancelled.add(id)
            self.executor.cancel(id)
            return
        item = self.queue.remove(id) or self._remove_waiting(id)
        if item is None:
            where = "another run has it and goes on with it" if self.elsewhere.pop(id, None) else "it is not to be run"
            log.warning("job %s was to be cancelled, but %s", id, where)
            return
        held = self.retrying.pop(id, None) or self.ledger.hold(id)
        if held is None:
            log.warning("job %s was to be cancelled, but another run has it and goes on with it", id)
            return
        try:
            outcome = self.ledger.publish_unstarted(item.job, held)
        finally:
            held.claim.release()
        self._learn(outcome)
        self._finished(item.job, outcome)

    def _remove_waiting(self, id: str) -> Item | None:
        """Take a job out of those that wait for a teacher; a teacher that nobody waits for is not made."""
        for preparation, items in self.waiting.items():
            for item in items:
                if item.id == id:
                    items.remove(item)
                    if not items and self.queue.remove(preparation) is not None:
                        del self.waiting[preparation]
                    return item
        return None

    # --- what comes back ----------------------------------------------------------------------------------------------

    def _handle(self, event: Event) -> None:
        if isinstance(event, Resized):
            self._resize(event.capacity)
            return
        running = self.running.get(event.id)
        if running is None:
            return
        job = running.item.job
        if isinstance(event, Ended):
            self._ended(running, event)
        elif running.item.preparation is not None:
            return
        elif isinstance(event, Started):
            place = Place(pid=event.pid, host=event.host, devices=event.devices, attempt=running.held.attempt)
            self.events.job_started(job, place)
        elif isinstance(event, Progress):
            self.events.job_progress(job, event.step, event.total, event.metrics)
        elif isinstance(event, Usage):
            self.events.job_usage(job, event.values)

    def _resize(self, capacity: Capacity) -> None:
        """There is more or less to give; what is free may be less than nothing until enough has ended."""
        before = self.capacity
        self.capacity = self.free = self.queue.capacity = capacity
        for running in self.running.values():
            self.free = self.free.take(running.slot)
        for id in self.retrying:
            item = self.queue.remove(id)
            if item is not None:
                everything = item.demand.memory == before.memory
                demand = replace(item.demand, memory=capacity.memory) if everything else item.demand
                self.queue.add(replace(item, demand=demand), first=not everything)
        if self._stalled:
            self._line_up_anew()

    def _ended(self, running: _Running, ended: Ended) -> None:
        item, held = running.item, running.held
        del self.running[item.id]
        self.free = self.free.give(running.slot)
        self.queue.charge(item, ended.seconds)
        recorded = True
        try:
            if item.preparation is not None:
                self._preparation_ended(running, item.preparation, ended)
            else:
                recorded = self._job_ended(running, ended)
        finally:
            self.cancelled.discard(item.id)
            if recorded and item.id not in self.retrying:
                held.claim.release()

    def _job_ended(self, running: _Running, ended: Ended) -> bool:
        """Returns False where the outcome will be recorded while something else runs in the job's place."""
        job, held = running.item.job, running.held
        ending = self.ledger.ending(job, held, ended)
        outcome = ending.outcome
        if outcome.status == "interrupted" and self._stop_at is not None:
            self.events.job_stopped(job)
            return True  # as if it had never started
        self._learn(outcome)  # others like it should not run out of memory, too
        if outcome.error is not None and self._left_for_later(running, outcome.status, outcome.error, ended.seconds):
            self.events.job_stopped(job)
            return True
        self.over.append((job, held, ending))
        return False

    def _record(self) -> bool:
        """Put the outcomes of jobs that are over into the spool and tell of them; whether there were any."""
        if not self.over:
            return False
        while self.over:
            job, held, ending = self.over[0]
            with self.interrupts.held():
                outcome = self.ledger.publish(held, ending)
            self._finished(job, outcome)
            held.claim.release()
            del self.over[0]
        return True

    def _preparation_ended(self, running: _Running, preparation: Preparation, ended: Ended) -> None:
        if ended.code == 0:
            self._prepared(preparation)
            return
        held = running.held
        status, error = deaths.reason_of(ended, held.folder)
        if status == "interrupted" and self._stop_at is not None:
            return
        if self._left_for_later(running, status, error, ended.seconds):
            return
        for item in self.waiting.pop(preparation.id, []):
            mine = self.ledger.hold(item.id)
            if mine is None:
                self.elsewhere[item.id] = item
                continue
            try:
                if not self._is_done(item):
                    outcome = self.ledger.publish_without_teacher(item.job, mine, held, ended)
                    self._learn(outcome)
                    self._finished(item.job, outcome)
            finally:
                mine.claim.release()

    def _left_for_later(self, running: _Running, status: Status, error: Failure, seconds: float) -> bool:
        """Line work up again that is worth another try; while the run stops, that is left to the next run."""
        item, held = running.item, running.held
        retry = again(
            status,
            error,
            before=held.tries,
            demand=item.demand,
            limit=item.limit,
            slot=running.slot,
            asked=item.job.resources,
            capacity=self.capacity,
        )
        if retry is None or item.id in self.cancelled:
            return False
        if retry.demand != item.demand and self.executor.refuses(retry.demand) is not None:
            return False
        if self._stop_at is None:
            name = f"{item.job.label or item.job.method} on {item.job.task}, seed {item.job.seed},"
            log.warning("%s %s", f"the {item.preparation.title}" if item.preparation else name, retry.why)
            held.tries.append(Try(status, error.message, seconds))
            self.retrying[item.id] = held
            self.queue.add(replace(item, demand=retry.demand, limit=retry.limit, overtaken=0), first=retry.first)
        return True

    def _prepared(self, preparation: Preparation) -> None:
        """The jobs that waited can start."""
        for item in self.waiting.pop(preparation.id, []):
            self.queue.add(self.learning.improved(item))

    def _finished(self, job: Job, outcome: Outcome) -> None:
        self.statuses[job.id] = outcome.status
        self.events.job_finished(job, outcome)

    def _learn(self, outcome: Outcome) -> None:
        """What like jobs need by now is set aside for those that run, too, so that no more is put beside them."""
        for id in self.learning.learn(outcome):
            running = self.running.get(id)
            if running is not None:
                need, slot = self.learning.improved(running.item).demand, running.slot
                running.slot = replace(
                    slot, memory=max(slot.memory, need.memory), gpu_memory=max(slot.gpu_memory, need.gpu_memory)
                )
                self.free = self.free.give(slot).take(running.slot)


def _jobs(number: int) -> str:
    return f"{number} job" + "s" * (number != 1)
