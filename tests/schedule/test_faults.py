"""Every way in which a job can go wrong, really caused, in one run: each is recorded with its reason."""

from __future__ import annotations

import os
import time

import pytest

import kdbench
from kdbench.hookspecs import hookimpl
from kdbench.store import spool
from tests.toytrack import EXTENSION, write_method

TIMEOUT = 4

FAULTS = {
    "raises": "@hookimpl\ndef train(task, params):\n    deep(1)\ndef deep(x):\n    return x / 0\n",
    "returns_none": "@hookimpl\ndef train(task, params):\n    task.student()\n",
    "returns_text": "@hookimpl\ndef train(task, params):\n    return 'a model'\n",
    "hangs": """
        import ctypes
        @hookimpl
        def train(task, params):
            ctypes.PyDLL(None).sleep(600)      # in C, with the interpreter's lock
        """,
    "loops": "@hookimpl\ndef train(task, params):\n    while True:\n        pass\n",
    "prints": """
        import os
        @hookimpl
        def train(task, params):
            print("first line")
            os.system("yes from a child | head -c 3000000")
            for number in range(60_000):
                print("line", number)
            print("last line")
            return task.student()
        """,
    "exits": "import sys\n@hookimpl\ndef train(task, params):\n    sys.exit(3)\n",
    "exits_at_once": "import os\n@hookimpl\ndef train(task, params):\n    os._exit(0)\n",
    "nan_loss": """
        @hookimpl
        def train(task, params):
            student = task.student()
            task.fit(student, lambda model, batch: model(batch.x).mean() * float('nan'))
            return student
        """,
    "nan_weights": """
        import torch
        @hookimpl
        def train(task, params):
            student = task.student()
            torch.nn.init.constant_(student.weight, float('nan'))
            return student
        """,
    "nan_metric": """
        @hookimpl
        def train(task, params):
            return task.student()
        @hookimpl
        def evaluate(task, model):
            return {**task.score(model), "own": float("nan")}
        """,
    "memory": """
        import numpy
        @hookimpl
        def train(task, params):
            held = []
            while True:
                held.append(numpy.ones(1 << 22))
        """,
    "memory_torch": "import torch\n@hookimpl\ndef train(task, params):\n    return torch.empty(1 << 40)\n",
    "memory_shared": """
        import mmap, time
        @hookimpl
        def train(task, params):
            held = mmap.mmap(-1, 1 << 30)        # not counted as data: only the watch sees it
            for page in range(0, 1 << 30, 4096):
                held[page] = 1
            time.sleep(60)
        """,
    "killed": "import os\n@hookimpl\ndef train(task, params):\n    os.kill(os.getpid(), 9)\n",
    "segfault": "import ctypes\n@hookimpl\ndef train(task, params):\n    ctypes.string_at(0)\n",
    "abort": "import os\n@hookimpl\ndef train(task, params):\n    os.abort()\n",
    "import_error": """
        import torch.no_such_module_anywhere
        @hookimpl
        def train(task, params):
            return task.student()
        """,
    "over_budget": """
        @hookimpl
        def train(task, params):
            student = task.student()
            task.fit(student, lambda model, batch: model(batch.x).pow(2).mean(), steps=1000)
            return student
        """,
    "changes_official": """
        @hookimpl
        def train(task, params):
            return task.student()
        @hookimpl
        def evaluate(task, model):
            return {**task.score(model), "mse": 0.0}
        """,
    "peeks": "@hookimpl\ndef train(task, params):\n    task.score(task.student())\n",
    "leaves_children": """
        import os, subprocess, sys
        @hookimpl
        def train(task, params):
            code = "import os, sys, time; open(sys.argv[1], 'w').write(str(os.getpid())); time.sleep(600)"
            for name, own in (("same", False), ("own", True)):
                command = [sys.executable, "-S", "-c", code, str(task.artifact(name))]
                subprocess.Popen(command, start_new_session=own)
            while not all(task.artifact(n).exists() and task.artifact(n).read_text() for n in ("same", "own")):
                pass
            return task.student()
        """,
}

EXPECTED = {
    "plain": ("ok", None, ""),
    "raises": ("failed", "ZeroDivisionError", "division by zero"),
    "returns_none": ("failed", "ArtifactError", "returned None"),
    "returns_text": ("failed", "ArtifactError", "returned a str"),
    "hangs": ("timeout", "timeout", f"longer than {TIMEOUT} seconds"),
    "loops": ("timeout", "timeout", f"longer than {TIMEOUT} seconds"),
    "prints": ("ok", None, ""),
    "exits": ("failed", "SystemExit", "sys.exit(3)"),
    "exits_at_once": ("crashed", "exit", "exit code 0"),
    "nan_loss": ("diverged", "Diverged", "the loss is nan"),
    "nan_weights": ("diverged", "Diverged", "weight"),
    "nan_metric": ("diverged", "Diverged", "'own' is nan"),
    "memory": ("oom", "", ""),
    "memory_torch": ("oom", "RuntimeError", "memory"),
    "memory_shared": ("oom", "oom", "MiB"),
    "killed": ("crashed", "SIGKILL", "SIGKILL"),
    "segfault": ("crashed", "SIGSEGV", "SIGSEGV"),
    "abort": ("crashed", "SIGABRT", "SIGABRT"),
    "import_error": ("failed", "ModuleNotFoundError", "no_such_module_anywhere"),
    "over_budget": ("over_budget", "OverBudget", "1000 steps"),
    "changes_official": ("failed", "ContractError", "'mse'"),
    "peeks": ("failed", "TestDataError", "validate"),
    "leaves_children": ("ok", None, ""),
}


class Watcher:
    """Damages a file after the plan is made, and measures the largest log while jobs run."""

    def __init__(self, damage):
        self.damage = damage
        self.largest = 0

    @hookimpl
    def kdbench_run_started(self, run):
        self.damage.write_text(self.damage.read_text() + "\ndef broken(:\n")

    @hookimpl
    def kdbench_job_finished(self, run):
        for log in (run.results / "running").glob("*/log.txt"):
            self.largest = max(self.largest, log.stat().st_size)


@pytest.fixture(scope="module")
def zoo(tmp_path_factory):
    base = tmp_path_factory.mktemp("zoo")
    files = [write_method(base / "m", slug, body) for slug, body in FAULTS.items()]
    files += [write_method(base / "m", "plain"), write_method(base / "m", "changed")]
    suite = {
        "name": "zoo",
        "tasks": [{"task": "toy/bare", "scale": "smoke"}],
        "methods": [path.stem for path in files],
        "seeds": 1,
        "timeout": TIMEOUT,
        "resources": {"memory": "300MiB"},
    }
    watcher = Watcher(base / "m" / "changed.py")
    result = kdbench.run(
        suite, results=base / "r", plugins=[EXTENSION, *files], tracking=False, workers=2, hooks=[watcher]
    )
    found = {outcome.job.method.partition("/")[2]: outcome for outcome in result.outcomes}
    return result, found, lambda slug: spool.job_folder(base / "r", found[slug].id), watcher


@pytest.mark.parametrize("slug", EXPECTED)
def test_it_is_recorded_with_its_reason_and_a_log(zoo, slug):
    _, found, folder, _ = zoo
    status, kind, words = EXPECTED[slug]
    outcome = found[slug]
    assert outcome.status == status, outcome.error
    assert (folder(slug) / "log.txt").exists()
    if status == "ok":
        assert outcome.error is None
        assert outcome.headline == outcome.metrics["mse"]
    else:
        assert outcome.headline is None
        assert outcome.metrics == {}
        assert words in outcome.error.message
        assert kind in ("", outcome.error.type)
        assert (folder(slug) / "log.txt").read_text().strip(), "the log says something too"


def test_every_job_has_an_outcome_and_the_run_says_that_some_failed(zoo):
    result, found, _, _ = zoo
    assert set(found) == {*EXPECTED, "changed"}
    assert result.left == []
    assert result.exit_code == 1
    assert list((result.run.results / "running").iterdir()) == []


def test_a_file_that_changed_after_planning_is_not_run_under_the_old_identity(zoo):
    _, found, _, _ = zoo
    assert found["changed"].status == "failed"
    assert found["changed"].error.type == "SyntaxError"
    assert "broken(:" in found["changed"].error.traceback


def test_a_traceback_begins_in_the_method(zoo):
    trace = zoo[1]["raises"].error.traceback
    assert trace.index("in train") < trace.index("in deep")
    assert "worker.py" not in trace


def test_a_job_out_of_time_says_where_it_was(zoo):
    assert "loops.py" in zoo[1]["loops"].error.traceback
    assert "hangs.py" in (zoo[2]("hangs") / "log.txt").read_text(), "even where it hangs in C"


def test_a_flood_of_output_is_cut_to_its_ends(zoo):
    _, _, folder, watcher = zoo
    text = (folder("prints") / "log.txt").read_text()
    assert text.startswith("first line\nfrom a child\n")
    assert text.endswith("last line\n")
    assert "bytes of output are left out here" in text
    assert len(text) < 1.1 * 2**20
    assert watcher.largest < 1.1 * 2**20, "the disk is never filled, not even for a while"


def test_what_a_job_leaves_behind_is_killed(zoo):
    _, found, folder, _ = zoo
    pids = [int((folder("leaves_children") / "artifacts" / name).read_text()) for name in ("same", "own")]
    deadline = time.monotonic() + 5
    while any(alive(pid) for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(alive(pid) for pid in pids)
    assert found["leaves_children"].provenance["left_behind"] >= 1


def alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_outcomes_say_what_they_cost_and_where_they_come_from(zoo):
    outcome = zoo[1]["plain"]
    assert outcome.cost["steps"] == 4
    assert outcome.cost["parameters"] == 5
    assert outcome.cost["peak_rss_bytes"] > 50e6
    assert 0 <= outcome.cost["train_seconds"] <= outcome.seconds
    assert "device_seconds" in outcome.cost
    assert outcome.provenance["device"] == "cpu"
    assert "kdbench.training.loop" in outcome.provenance["modules"]
    assert not any(name.startswith("kdbench.schedule") for name in outcome.provenance["modules"])
    assert zoo[1]["killed"].provenance["packages"] == outcome.provenance["packages"]


def test_a_job_without_a_sign_of_life_is_ended_long_before_its_time(tmp_path):
    body = """
        import ctypes, threading
        @hookimpl
        def train(task, params):
            student = task.student()
            task.fit(student, lambda model, batch: model(batch.x).pow(2).mean(), steps=2)
            threading.Thread(target=print, args=["still here"]).start()
            ctypes.PyDLL(None).sleep(600)      # in C, with the interpreter's lock
        """
    files = [write_method(tmp_path, "hangs", body)]
    suite = {
        "name": "hung",
        "tasks": [{"task": "toy/bare", "scale": "smoke"}],
        "methods": ["hangs"],
        "seeds": 1,
        "heartbeat": 1,
    }
    result = kdbench.run(suite, results=tmp_path / "r", plugins=[EXTENSION, *files], tracking=False)
    (outcome,) = result.outcomes
    assert (outcome.status, outcome.error.type) == ("timeout", "hung")
    assert outcome.error.message.startswith("it gave no sign of life for 1 seconds; the last was ")
    assert outcome.error.message.endswith("; it was at step 1"), "progress is told twice a second at most"
    assert "hangs.py" in (spool.job_folder(tmp_path / "r", outcome.id) / "log.txt").read_text(), "where it was"
