"""Runs that are killed: the coordinator at fifty random moments, the process that jobs are forked from, a job.

Whatever was killed, the same command goes on: no finished job is lost or done again, none is there twice, nothing
of the killed run is left.
"""

from __future__ import annotations

import os
import random
import threading
import time
from pathlib import Path

import psutil
import pytest

from kdbench.store import spool
from tests.helpers.scenes import kept

CGROUP = Path("/sys/fs/cgroup")

KILLS = 50
METHODS = ("quick", "slow", "fails", "parents")
TASKS = ("toy/bare@smoke", "toy/line@smoke")


class Killer(threading.Thread):
    """Starts the command and kills it, again and again, in one phase of a run or another."""

    def __init__(self, scene, number, waves):
        super().__init__(name=f"killer-{number}")
        self.scene = scene
        self.waves = waves
        self.random = random.Random(number)
        self.startup, self.first, self.end = 1.0, 4.0, 1.0
        """Seconds until a run says what it will do, from there until its first job has ended, and from its last job
        to its end: measured whenever a run gets that far."""
        self.phases = []
        self.problem = None

    def run(self):
        try:
            while len(self.phases) < KILLS / 2:
                phase = self._round(len(self.phases))
                self.phases += [phase] * (phase is not None)
        except BaseException as error:  # raised again by the test
            self.problem = error

    def _round(self, number):
        """Kill a run; returns in which phase, or None for a run that was faster."""
        before, seeds = self.scene.stamps(), self.waves.seeds
        phase = self.random.choice(["startup", "startup", "startup", "server", "jobs", "jobs"])
        started = time.monotonic()
        run = self.scene.start("--seeds", str(seeds), name=f"{self.name}-{number}")
        if phase == "startup":
            time.sleep(self.random.uniform(0, 1.2 * self.startup))
        else:
            announced = run.waits_for(r"(\d+) of \d+ jobs? to run")
            self.startup = time.monotonic() - started
            phase = self._later(run, phase, int(announced[1]) if announced else 0)
        if run.code is None:
            run.process.kill()
            run.process.wait()
        else:
            assert run.code == 1, f"it ended by itself:\n{run.text}"
            phase = None
            self.waves.ended(seeds)
        assert not kept(before, self.scene.stamps()), "a finished job is not touched again"
        return phase

    def _later(self, run, phase, count):
        """Wait for a moment in this phase of a run that has ``count`` jobs to do."""
        started = time.monotonic()
        if phase == "server":
            time.sleep(self.random.uniform(0, self.first))
        elif run.waits_for(r"\[1/"):
            self.first = time.monotonic() - started
            if count > 6:
                run.waits_for(rf"\[{self.random.randrange(1, 6)}/")
                time.sleep(self.random.uniform(0, 0.15))
            elif run.waits_for(rf"\[{count}/"):
                phase = "end"
                time.sleep(self.random.uniform(0, self.end))
        return phase


class Waves:
    """How many seeds the suite has: more whenever all of it is done."""

    def __init__(self):
        self.seeds = 3

    def ended(self, seeds):
        self.seeds = max(self.seeds, seeds + 3)


def test_a_run_killed_at_fifty_random_moments_is_finished_by_the_same_command(scene):
    """Two chains of runs share one results folder, so that each is killed while the other works or takes over."""
    here, waves = scene(*METHODS, tasks=TASKS), Waves()
    killers = [Killer(here, number, waves) for number in range(2)]
    for killer in killers:
        killer.start()
    for killer in killers:
        killer.join()
    for killer in killers:
        if killer.problem is not None:
            raise killer.problem
    phases = [phase for killer in killers for phase in killer.phases]
    assert len(phases) == KILLS
    assert {"startup", "server", "jobs"} <= set(phases)

    before = here.stamps()
    assert before, "some kills came after jobs had ended"
    last = here.run("--json", "--seeds", str(waves.seeds))
    assert last.code == 1, last.text
    cells = len(METHODS) * len(TASKS)
    assert (last.json()["left"], len(last.json()["failed"])) == ([], waves.seeds * len(TASKS))
    assert not kept(before, here.stamps())
    here.require_finished(jobs=waves.seeds * cells)
    begun = here.traced("begin")
    assert len(begun) - len(set(begun)) <= 2 * KILLS, "what a kill interrupted begins again, and nothing else"


def test_a_job_that_outlives_its_killed_run_is_not_run_by_another_one_meanwhile(scene):
    here = scene("waits", "quick", seeds=1)
    first = here.start("--filter", "waits", name="first")
    first.until(lambda: here.traced("begin"), "the job begins")
    (waiting,) = here.traced("begin")
    job = here.process_of(waiting)
    server = job.parent()
    server.suspend()  # so that it cannot end the job
    first.process.kill()
    first.process.wait()

    second = here.start(name="second")
    second.until(lambda: here.traced("end"), "the other job ends")
    assert here.traced("begin").count(waiting) == 1
    assert job.is_running()
    server.resume()
    second.until(lambda: here.traced("begin").count(waiting) == 2, "the job begins again once its process is gone")
    assert not job.is_running()
    here.let_go()
    assert second.end() == 0, second.text
    here.require_finished(jobs=2)


def test_jobs_of_a_killed_fork_server_run_again_in_the_same_run(scene):
    here = scene("quick", "waits", seeds=1)
    run = here.start()
    run.until(lambda: len(here.stamps()) == 1 and len(here.traced("begin")) == 2, "one job is done, one runs")
    before = here.stamps()
    (waiting,) = set(here.traced("begin")) - set(before)
    job = here.process_of(waiting)
    job.parent().kill()
    run.until(lambda: here.traced("begin").count(waiting) == 2, "the job begins again")
    assert not job.is_running()
    here.let_go()
    assert run.end() == 0, run.text
    assert not kept(before, here.stamps())
    outcome = spool.read_outcome(spool.job_folder(here.results, waiting))
    assert outcome.attempts == 2
    assert "SIGKILL" in str(outcome.provenance["retried"])
    here.require_finished(jobs=2)


def test_a_fork_server_that_is_killed_whenever_it_starts_ends_the_run_with_a_message(scene):
    here = scene("quick", seeds=1)
    run = here.start()
    killed = set()
    while run.code is None:
        server = server_of(run)
        if server is not None:
            server.kill()
            killed.add(server.pid)
        time.sleep(0.02)
    assert len(killed) >= 2, "it tried again"
    assert run.code == 2, run.text
    assert "SIGKILL" in run.text
    assert "Traceback" not in run.text
    here.require_quiet()
    assert list((here.results / "running").iterdir()) == []


def server_of(run):
    """The fork server of a run that has no jobs yet."""
    try:
        children = psutil.Process(run.process.pid).children()
        return next((child for child in children if "forkserver" in " ".join(child.cmdline())), None)
    except (psutil.NoSuchProcess, psutil.ZombieProcess):
        return None


HUNGRY = """
@hookimpl
def train(task, params):
    import numpy
    with traced(task):
        held = [numpy.ones(1 << 20)]
        while True:
            held.append(numpy.ones(1 << 20))
"""


@pytest.fixture
def little_memory():
    """The command that joins a control group with 2 GiB of memory before it runs another."""
    for place, limit in ((CGROUP / "memory", "memory.limit_in_bytes"), (CGROUP, "memory.max")):
        group = place / f"kdbench-test-{os.getpid()}"
        try:
            group.mkdir()
        except OSError:
            continue
        try:
            (group / limit).write_text(str(2 << 30))
            yield ["sh", "-c", f'echo $$ > {group}/cgroup.procs && exec "$@"', "sh"]
            return
        except OSError:
            continue
        finally:
            while (group / "cgroup.procs").read_text().split():
                time.sleep(0.05)
            group.rmdir()
    pytest.skip("this system does not let its users make control groups with a limit of memory")


def test_a_job_that_the_kernel_kills_for_want_of_memory_is_out_of_memory(scene, little_memory):
    """The suite allows more than there is, as on a machine whose memory others use."""
    here = scene("quick", "hungry", bodies={"hungry": HUNGRY}, seeds=1, suite={"resources": {"memory": "8GiB"}})
    run = here.run("--workers", "1", prefix=little_memory)
    assert run.code == 1, run.text
    found = {outcome.job.method: outcome for outcome in spool.iter_outcomes(here.results)}
    assert found["toy/quick"].status == "ok"
    assert found["toy/hungry"].status == "oom", found["toy/hungry"].error
    assert "the kernel killed it" in found["toy/hungry"].error.message
    here.require_quiet()
