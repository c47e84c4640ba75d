"""A clock that is set while a run goes on: nothing waits for hours, ends early or is lost.

A small library, loaded before libc, moves the time of day that every process of a run sees; the test says how far.
Only the time of day can jump: the clock that durations are taken from cannot.
"""

from __future__ import annotations

import os
import shutil
import struct
import subprocess

import pytest

from kdbench.store import duck, spool
from tests.helpers.scenes import PATIENCE, kept

SHIFTED = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

/* Seconds by which the time of day is moved: in a file, so that they can change while processes run. */
static volatile long long *shift;

__attribute__((constructor)) static void open_shift(void) {
    int file = open(getenv("CLOCK_SHIFT"), O_RDONLY);
    shift = mmap(0, sizeof *shift, PROT_READ, MAP_SHARED, file, 0);
    close(file);
}

int clock_gettime(clockid_t clock, struct timespec *now) {
    static int (*real)(clockid_t, struct timespec *);
    if (!real) real = dlsym(RTLD_NEXT, "clock_gettime");
    int failed = real(clock, now);
    if (!failed && shift && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE)) now->tv_sec += *shift;
    return failed;
}

int gettimeofday(struct timeval *now, void *zone) {
    struct timespec exact;
    int failed = clock_gettime(CLOCK_REALTIME, &exact);
    now->tv_sec = exact.tv_sec;
    now->tv_usec = exact.tv_nsec / 1000;
    return failed;
}

time_t time(time_t *where) {
    struct timespec exact;
    clock_gettime(CLOCK_REALTIME, &exact);
    if (where) *where = exact.tv_sec;
    return exact.tv_sec;
}
"""

HOURS = 3600
BEATS = """
@hookimpl
def train(task, params):
    with traced(task):
        while not os.path.exists(os.environ["TRACE"] + "-go"):
            print(time.time(), flush=True)
            time.sleep(0.05)
        return trained(task)
"""


class Clock:
    """The time of day of the processes that get :attr:`environment`."""

    def __init__(self, folder):
        source, library, self.path = folder / "shifted.c", folder / "shifted.so", folder / "shift"
        source.write_text(SHIFTED)
        subprocess.run(["cc", "-shared", "-fPIC", "-o", library, source, "-ldl"], check=True)
        self.path.write_bytes(struct.pack("q", 0))
        self.environment = {"LD_PRELOAD": str(library), "CLOCK_SHIFT": str(self.path)}

    def set(self, seconds):
        """Move the time of day to so many seconds from the real one."""
        with self.path.open("r+b") as file:
            file.write(struct.pack("q", seconds))


@pytest.fixture
def clock(tmp_path):
    if shutil.which("cc") is None:
        pytest.skip("a C compiler is needed to make a clock that jumps")
    return Clock(tmp_path)


def test_a_clock_that_jumps_back_and_forth_changes_nothing_but_dates(scene, clock):
    here = scene("quick", "beats", bodies={"beats": BEATS}, seeds=1, suite={"timeout": "1h", "heartbeat": "10min"})
    run = here.start(env={**here.environment, **clock.environment})
    run.until(lambda: len(here.stamps()) == 1 and beats(here), "one job is done, one runs")
    before = here.stamps()
    for seconds in (48 * HOURS, -48 * HOURS):
        clock.set(seconds)
        known = len(beats(here))
        run.until(lambda known=known: len(beats(here)) > known + 4, "the job still runs")
        assert abs(beats(here)[-1] - beats(here)[0]) > 40 * HOURS, "its clock has jumped"
    here.let_go()
    assert run.end() == 0, run.text
    assert not kept(before, here.stamps())
    assert all(0 <= outcome.seconds < PATIENCE for outcome in spool.iter_outcomes(here.results)), (
        "durations do not jump"
    )
    here.require_finished(jobs=2)


def beats(here):
    """What the job that runs printed: its time of day, again and again."""
    lines = [path.read_text().splitlines() for path in (here.results / "running").glob("*/log.txt")]
    return [float(line) for line in lines[0][:-1]] if lines else []


def test_files_with_dates_of_the_future_or_the_past_are_seen_like_others(scene):
    """As archives, other machines' clocks or file systems without dates leave them."""
    here = scene("quick", seeds=3, suite={"executor": "here"})
    assert here.run().code == 0
    for date in (0, 1 << 33):
        for path in (*here.results.rglob("*"), here.results):
            os.utime(path, (date, date))
        (one, *_) = here.stamps()
        shutil.rmtree(spool.job_folder(here.results, one))
        again = here.run(name=f"again{date}")
        assert again.code == 0, again.text
        assert "(1 of them now)" in again.text
        here.require_finished(jobs=3)
        published = duck.published_path(here.results)
        assert duck.state_of(published) == duck.state_of(duck.writer_path(here.results))
