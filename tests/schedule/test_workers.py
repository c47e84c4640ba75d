"""One process for several jobs: what the next job finds, and when it gets another process."""

from __future__ import annotations

import json
import os
import signal
import time

import psutil
import pytest

from kdbench.errors import UsageError
from kdbench.schedule.executor import Progress, Started
from kdbench.schedule.local import LocalExecutor, local
from kdbench.schedule.machine import Gpu
from kdbench.schedule.packing import Slot
from tests.helpers.jobs import PATIENCE, Jobs
from tests.toytrack import PLAIN

FACTS = """
import gc, json, locale, logging, os, resource, signal, sys, threading, time, warnings
import numpy as np
import torch

def facts():
    here = {
        "environment": {k: v for k, v in os.environ.items()},
        "folder": os.getcwd(),
        "mask": os.umask(0o22),
        "path": sys.path,
        "filters": [str(f) for f in warnings.filters],
        "recursion": sys.getrecursionlimit(),
        "collecting": [gc.isenabled(), gc.get_threshold()],
        "signals": [str(signal.getsignal(n)) for n in sorted(signal.valid_signals())],
        "timer": signal.getitimer(signal.ITIMER_REAL),
        "files": resource.getrlimit(resource.RLIMIT_NOFILE),
        "hooks": [sys.excepthook is sys.__excepthook__, sys.gettrace() is None],
        "errors": np.geterr(),
        "logging": [logging.root.level, len(logging.root.handlers), logging.root.manager.disable],
        "torch": [
            str(torch.get_default_dtype()), str(torch.get_default_device()), torch.get_num_threads(),
            torch.are_deterministic_algorithms_enabled(), torch.is_grad_enabled(), torch.is_anomaly_enabled(),
            torch.backends.cudnn.benchmark, torch.get_float32_matmul_precision(),
            torch.backends.cuda.flash_sdp_enabled(), len(torch.nn.modules.module._global_forward_hooks),
        ],
        "random": [float(torch.rand(())), float(np.random.rand())],
        "threads": threading.active_count(),
        "toy": sorted(n for n in sys.modules if n.startswith(("kdbench", "vandal"))),
        "children": open(f"/proc/self/task/{os.getpid()}/children").read(),
    }
    os.umask(here["mask"])
    return here

@hookimpl
def train(task, params):
    task.artifact("fact").write_text(json.dumps(facts(), default=str))
    return task.student()
"""

VANDAL = """
import gc, logging, os, resource, signal, subprocess, sys, warnings
import numpy as np
import torch
import kdbench.losses.divergences
import vandal_helper

@hookimpl
def train(task, params):
    student = task.student()
    vandal_helper.used += 1
    os.environ["VANDAL"] = "1"
    os.environ.pop("OMP_NUM_THREADS")
    os.chdir("/")
    os.umask(0o77)
    sys.path.insert(0, "/nowhere")
    warnings.simplefilter("error")
    sys.setrecursionlimit(5000)
    gc.disable()
    gc.set_threshold(1, 2, 3)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    signal.alarm(1000)
    resource.setrlimit(resource.RLIMIT_NOFILE, (100, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
    sys.excepthook = print
    np.seterr(all="raise")
    logging.basicConfig(level=logging.DEBUG)
    logging.disable(logging.ERROR)
    torch.set_default_dtype(torch.float64)
    torch.set_grad_enabled(False)
    torch.autograd.set_detect_anomaly(True)
    torch.backends.cudnn.benchmark = True
    torch.set_float32_matmul_precision("medium")
    torch.backends.cuda.enable_flash_sdp(False)
    torch.nn.modules.module.register_module_forward_hook(lambda *_: None)
    sys.stdout = open(os.devnull, "w")
    os.dup2(sys.stdout.fileno(), 2)
    task.artifact("used").write_text(str(vandal_helper.used))
    return student

@hookimpl
def evaluate(task, model):
    torch.set_default_dtype(torch.float32)
    scores = task.score(model)
    torch.set_default_device("meta")
    return scores
"""


PRINTS = """
import ctypes, os
@hookimpl
def train(task, params):
    ctypes.CDLL(None).printf(b"C says %d\\n", task.seed)      # stays in C's buffer until it is flushed
    print("Python says", task.seed)
    os.system(f"echo a child says {task.seed}")
    return task.student()
"""

FAILURES = {
    "raises": ("@hookimpl\ndef train(task, params):\n    raise ValueError('no')\n", "failed"),
    "diverges": (
        """
        @hookimpl
        def train(task, params):
            student = task.student()
            task.fit(student, lambda model, batch: model(batch.x).mean() * float("nan"))
        """,
        "diverged",
    ),
    "memory": ("import torch\n@hookimpl\ndef train(task, params):\n    return torch.empty(1 << 45)\n", "oom"),
    "exits": ("import os\n@hookimpl\ndef train(task, params):\n    os._exit(7)\n", None),
    "killed": ("import os\n@hookimpl\ndef train(task, params):\n    os.kill(os.getpid(), 9)\n", None),
    "threads": (
        """
        import threading, time
        @hookimpl
        def train(task, params):
            threading.Thread(target=time.sleep, args=[1000], daemon=True).start()
            return task.student()
        """,
        "ok",
    ),
    "holds": (
        """
        import builtins
        @hookimpl
        def train(task, params):
            builtins.held = bytearray(b"x") * (600 << 20)
            return task.student()
        """,
        "ok",
    ),
}
"""Body of a method, and the status of the outcome that it writes."""

LOOPS = """
@hookimpl
def train(task, params):
    task._report(1, None, {})
    while True:
        pass
"""

USES = """
import time
@hookimpl
def train(task, params):
    time.sleep(0.7 if task.seed else 0.0)
    held = bytearray(b"x") * ((200 << 20) if task.seed == 0 else 1)
    return task.student()
"""

LEAVES = """
import subprocess
@hookimpl
def train(task, params):
    script = "sleep 1000 & echo $! >> $0; (setsid sleep 1000 & echo $! >> $0)"
    subprocess.run(["sh", "-c", script, str(task.artifact("fact"))], check=True)
    return task.student()
"""

METHODS = {
    "plain": PLAIN,
    "facts": FACTS,
    "vandal": "import sys; sys.path.append(__file__.rpartition('/')[0])\n" + VANDAL,
    "prints": PRINTS,
    "loops": LOOPS,
    "uses": USES,
    "leaves": LEAVES,
    **{slug: body for slug, (body, _) in FAILURES.items()},
}

GPUS = (Gpu("GPU-a", "a", 1 << 30), Gpu("GPU-b", "b", 1 << 30))


class Desk:
    """All methods, and one fork server for all tests."""

    def __init__(self, folder):
        (folder / "methods").mkdir()
        (folder / "methods" / "vandal_helper.py").write_text("used = 0\n")
        self.jobs = Jobs(folder, METHODS, seeds=50)
        self.executor = LocalExecutor(self.jobs.context(), gpus=GPUS)

    def submit(self, slug, *, reuse=True, **more):
        self.executor.reuse = reuse
        return self.jobs.submit(self.executor, slug, **more)

    def wait(self, id):
        return self.jobs.wait(self.executor, id)

    def until(self, id, kind):
        return self.jobs.until(self.executor, id, kind)

    def run(self, slug, **more):
        return self.wait(self.submit(slug, **more))


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    desk = Desk(tmp_path_factory.mktemp("workers"))
    yield desk
    desk.executor.close()


@pytest.fixture
def desk(shared):
    """Every test begins with a new worker."""
    shared.run("raises")
    return shared


def test_jobs_share_a_process_and_give_the_results_of_a_process_each(desk):
    pairs = [(desk.run("plain"), desk.run("plain", reuse=False, again=True)) for _ in range(3)]
    assert len({shared.pid for shared, _ in pairs}) == 1
    assert len({alone.pid for _, alone in pairs}) == 3
    for shared, alone in pairs:
        assert shared.ended.code == alone.ended.code == 0
        assert shared.outcome.metrics == alone.outcome.metrics
        assert shared.outcome.provenance["modules"] == alone.outcome.provenance["modules"]


def test_the_next_job_finds_what_a_new_process_has(desk):
    new = json.loads(desk.run("facts", reuse=False).fact())
    first = desk.run("vandal")
    found = desk.run("facts")
    again = desk.run("vandal")
    assert first.outcome.status == "ok", first.outcome.error
    assert first.pid == found.pid == again.pid, first.log
    assert (first.fact("used"), again.fact("used")) == ("1", "1"), "the method's helpers begin anew, too"
    known = json.loads(found.fact())
    for facts in (new, known):
        assert facts.pop("random"), "seeded by the job"
    more = set(known.pop("toy")) - set(new.pop("toy"))
    assert not [name for name in more if not name.startswith("kdbench.schedule")], "only what cleans up"
    assert known == new


def test_what_a_job_prints_is_in_its_own_log(desk):
    results = [desk.run("prints") for _ in range(3)]
    assert len({result.pid for result in results}) == 1
    for result in results:
        seed = result.outcome.job.seed
        assert sorted(result.log.splitlines()) == [f"C says {seed}", f"Python says {seed}", f"a child says {seed}"]


@pytest.mark.parametrize("slug", FAILURES)
def test_a_process_is_renewed_after_whatever_does_not_end_well(desk, slug):
    status = FAILURES[slug][1]
    first = desk.run("plain")
    result = desk.run(slug)
    assert result.pid == first.pid
    assert (result.outcome.status if result.outcome else None) == status
    assert status != "ok" or "another process" in result.log, "the log says why"
    assert desk.run("plain").pid != first.pid


def test_a_job_on_a_used_process_is_ended_like_any_other(desk):
    before = desk.run("plain")
    late = desk.run("loops", timeout=1.0)
    assert late.pid == before.pid
    assert late.ended.reason == "timeout"
    assert late.ended.message.startswith("it ran longer than 1 seconds")
    assert "loops.py" in late.log, "it says where it was"
    fresh = desk.run("plain")
    assert fresh.pid != late.pid
    id = desk.submit("loops")
    desk.until(id, Progress)
    desk.executor.cancel(id)
    cancelled = desk.wait(id)
    assert (cancelled.pid, cancelled.ended.reason) == (fresh.pid, "cancelled")
    assert desk.run("plain").ended.code == 0


def test_time_and_memory_are_of_the_job_and_not_of_the_process(desk):
    results = [desk.run("uses") for _ in range(3)]
    assert len({result.pid for result in results}) == 1
    large, *small = (result.ended.peak_rss for result in results)
    assert all(size < large - (100 << 20) for size in small)
    assert small[0] == results[1].outcome.cost["peak_rss_bytes"]
    assert results[2].ended.seconds >= 0.7
    assert results[2].ended.seconds < sum(result.ended.seconds for result in results)


def test_what_a_job_leaves_behind_is_killed_before_the_next(desk):
    result = desk.run("leaves")
    pids = [int(line) for line in result.fact().split()]
    assert len(pids) == 2
    assert not any(psutil.pid_exists(pid) for pid in pids)
    assert result.ended.left_behind == 2
    assert desk.run("plain").pid == result.pid


def test_an_idle_process_that_dies_is_replaced(desk):
    first = desk.run("plain")
    os.kill(first.pid, signal.SIGKILL)
    second = desk.run("plain")
    while second.ended.reason == "lost":  # it got the order in the moment between its death and the news of it
        second = desk.run("plain")
    assert second.ended.code == 0
    assert second.pid != first.pid


# --- devices: what needs no CUDA --------------------------------------------------------------------------------------


def gone(pid):
    deadline = time.monotonic() + PATIENCE
    while psutil.pid_exists(pid) and time.monotonic() < deadline:
        time.sleep(0.02)
    return not psutil.pid_exists(pid)


def test_a_process_keeps_its_devices_and_goes_when_others_need_them(desk):
    """Teachers of a task without a teacher are made here: that wants nothing of the device."""

    def prepare(gpus, share):
        return desk.submit("plain", reuse=None, kind="prepare", slot=Slot(1.0, gpus, share))

    both = [desk.wait(id) for id in [prepare((0,), 0.5) for _ in range(2)]]
    assert len({result.pid for result in both}) == 2, "at the same time"
    devices = [event.devices for result in both for event in result.events if isinstance(event, Started)]
    assert devices == [("GPU-a",), ("GPU-a",)]
    assert desk.wait(prepare((0,), 0.5)).pid in {result.pid for result in both}
    alone = desk.wait(prepare((0,), 1.0))
    assert alone.pid in {result.pid for result in both}, "it has the right devices"
    (rest,) = {result.pid for result in both} - {alone.pid}
    assert gone(rest), "a job that has the device alone has all of it"
    two = desk.wait(prepare((0, 1), 1.0))
    assert two.ended.code == 0
    assert two.pid != alone.pid
    assert gone(alone.pid)
    assert desk.run("plain", reuse=None).pid not in {two.pid, alone.pid}, "without devices: a process of its own"


def test_options_are_checked(shared):
    context = shared.jobs.context()
    with pytest.raises(UsageError, match="'reuse'"):
        local(context, reus=True)
    with pytest.raises(UsageError, match="true or false, not 'yes'"):
        local(context, reuse="yes")
