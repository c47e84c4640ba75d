"""Checkpoints: an interrupted job goes on with the same result, or starts anew and says why."""

from __future__ import annotations

import errno
import json
import logging
import signal
from itertools import count
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from kdbench.conformance.interrupting import Interrupted, curve, interrupting, run_in_two, run_interrupted
from kdbench.job import Job
from kdbench.registry import discover
from kdbench.schedule.verify import meters
from kdbench.store import spool
from kdbench.training import checkpoint, loop
from kdbench.training.checkpoint import Checkpoints
from kdbench.training.saving import Unsavable, bytes_of, copied, plain
from kdbench.worker import run_job
from tests.toytrack import EXTENSION, write_method

EVERYTHING = """
import random
import numpy, torch
from kdbench.training.loaders import cycle
from kdbench.training.rollouts import MixedBatches
from kdbench.training.state import Values

class Noisy(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = torch.nn.Sequential(
            torch.nn.Linear(4, 8), torch.nn.BatchNorm1d(8), torch.nn.Dropout(0.3), torch.nn.Linear(8, 1))
        self.register_buffer("calls", torch.zeros(()), persistent=False)

    def forward(self, x):
        self.calls += 1
        return self.layers(x) * (1 + 0.01 * self.calls)

def batches(task, generator):
    for batch in cycle(task.train_loader()):
        batch.x = batch.x + 0.1 * torch.randn(batch.x.shape, generator=generator)
        yield batch

@hookimpl
def train(task, params):
    with task.seeded("net"):
        first, net, head = Noisy(), Noisy(), torch.nn.Linear(1, 1)
    shared, draws = task.generator("shared"), task.rng("draws")

    def first_loss(model, batch):
        return ((model(batch.x) - batch.y) ** 2).mean() * (1 + torch.rand((), generator=shared))

    task.fit(first, first_loss, steps=3, spend="aux_steps", tag="first", loader=batches(task, task.generator("views")))
    first.requires_grad_(False).eval()
    task.log(0, between=float(first(torch.ones(2, 4)).sum()))
    task.artifact("between").write_text(str(float(first.calls)))

    memory, latest = Values(sum=torch.zeros(1), best=None, names=[]), []
    other = cycle(task.train_loader())
    mixed = MixedBatches(task.train_loader(), lambda n: next(extra), lambda step: 0.4, task.rng("mix"))
    extra = cycle(task.train_loader())

    def loss(model, batch):
        latest.append(batch)
        out = head(model(batch.x))
        noise = random.random() + numpy.random.rand() + float(torch.rand(())) + draws.random()
        memory.sum += float(torch.rand((), generator=shared))
        return {"fit": ((out - batch.y) ** 2).mean() * (1 + 0.1 * noise),
                "teach": ((out - first(batch.x)) ** 2).mean() * memory.sum,
                "more": (model(next(other).x) ** 2).mean() * 0.1}

    def on_step(step):
        latest.clear()
        task.budget.spend("teacher_queries", 2)
        if memory.best is None or step % 3 == 0:
            memory.best = float(head.weight.detach())
            memory.names.append(f"step {step}")
            task.artifact(f"steps/{step}").write_text(str(memory.best))
            task.artifact("empty").touch()
        task.log(step, best=memory.best)

    result = task.fit(net, loss, loader=mixed, steps=5, spend="aux_steps", modules=[head], ema=0.9, on_step=on_step,
                      state=[memory, other, extra, first], optimizer="adamw", lr=0.05, schedule="onecycle", clip=0.5,
                      accumulate=2, weight_decay=0.1)
    task.log(9, loss=result.loss, ema=float(result.ema(torch.ones(2, 4)).sum()), names=len(memory.names),
             calls=float(net.calls), later=random.random() + float(torch.rand(())) + draws.random())
    student = task.student()
    task.fit(student, lambda model, batch: ((model(batch.x) - net(batch.x)) ** 2).mean(), momentum=0.9,
             state=[net])
    return student
"""

TRAINING = """
import collections, random
import numpy, torch
from kdbench.training.state import Values
SEEN = []
total = 0

class Own:
    history = []
    def __init__(self):
        self.n = 0

def numbers():
    yield from range(1000)

@hookimpl
def train(task, params):
    student = task.student()
    teacher = task.build_student().requires_grad_(False)
    {setup}

    def loss(model, batch):
        {loss}
        return ((model(batch.x) - batch.y) ** 2).mean() {term}

    def on_step(step):
        {on_step}

    task.fit(student, loss, on_step=on_step{options})
    return student
"""


@pytest.fixture
def job_of(tmp_path):
    """Makes a job of a method with this body, and the registry that knows it."""
    numbers = count()

    def make(body, **changes):
        slug = f"m{next(numbers)}"
        registry = discover([EXTENSION, write_method(tmp_path / "methods", slug, body)])
        method, spec = registry.method(f"toy/{slug}"), registry.task("toy/bare", "cpu")
        job = Job(
            method=method.key,
            method_digest=method.digest,
            params={},
            task=spec.name,
            spec=spec.identity(),
            seed=0,
            track_version=1,
            method_file=method.path,
            module=method.module,
            **changes,
        )
        return job, registry

    return make


def training(setup="pass", loss="pass", on_step="pass", term="", options=""):
    return TRAINING.format(setup=setup, loss=loss, on_step=on_step, term=term, options=options)


def require_equal(tmp_path, ours, theirs):
    assert ours.status == theirs.status == "ok", (ours.error, theirs.error)
    assert (ours.metrics, meters(ours), ours.artifacts) == (theirs.metrics, meters(theirs), theirs.artifacts)


def test_everything_that_changes_goes_on_wherever_it_was_interrupted(job_of, tmp_path):
    job, registry = job_of(EVERYTHING, checkpoint_every=None)
    expected = run_job(job, tmp_path / "whole", registry=registry)
    assert expected.status == "ok", expected.error
    total = run_interrupted(job, tmp_path / "counted", 10**6, registry=registry)
    assert total >= 15
    for after in range(1, total, 3):
        folder = tmp_path / f"after{after}"
        outcome, stopped = run_in_two(
            job.model_copy(update={"checkpoint_every": 600}), folder, after, registry=registry
        )
        assert stopped == after
        require_equal(tmp_path, outcome, expected)
        assert curve(folder) == curve(tmp_path / "whole")
        for name in expected.artifacts:
            if name.startswith("artifacts/"):
                assert (folder / name).read_text() == (tmp_path / "whole" / name).read_text()
        assert len(outcome.provenance["resumed"]) == 1
        assert not (folder / spool.CHECKPOINT).exists(), "a job that is done needs none"


def test_a_job_may_be_interrupted_again_and_again(job_of, tmp_path):
    job, registry = job_of(EVERYTHING, checkpoint_every=0.0)
    expected = run_job(job.model_copy(update={"checkpoint_every": None}), tmp_path / "whole", registry=registry)
    rounds = 0
    while run_interrupted(job, tmp_path / "often", 2, registry=registry) is None:
        rounds += 1
    outcome = spool.read_outcome(tmp_path / "often")
    require_equal(tmp_path, outcome, expected)
    assert curve(tmp_path / "often") == curve(tmp_path / "whole")
    places = [(each["fit"], each["step"]) for each in outcome.provenance["resumed"]]
    assert rounds >= 5
    assert places == sorted(places)
    assert len(set(places)) == rounds, "each attempt gets further"


UNSEEN = {
    "a variable that is bound anew": ("done = 0", "nonlocal done; done += 1", "pass", "* done", "`done`"),
    "a number in a dict": ("seen = {'n': 0}", "seen['n'] += 1", "pass", "* seen['n']", "`seen['n']`"),
    "a list that grows": ("rows = []", "rows.append(1)", "pass", "* len(rows)", "`rows`"),
    "a deque": ("rows = collections.deque(maxlen=2)", "rows.append(len(rows))", "pass", "* (rows[-1] + 1)", "`rows`"),
    "a set": ("rows = set()", "rows.add(len(rows))", "pass", "* len(rows)", "`rows`"),
    "an object of the method": ("own = Own()", "own.n += 1", "pass", "* own.n", "`own.n`"),
    "what a class holds": ("own = Own()", "own.history.append(1)", "pass", "* len(own.history)", "`own.history`"),
    "an object that is deep inside": (
        "box = {'a': [Own()]}",
        "box['a'][0].n += 1",
        "pass",
        "* box['a'][0].n",
        "`box['a'][0].n`",
    ),
    "a tensor": ("scale = torch.ones(1)", "pass", "scale.mul_(1.1)", "* scale", "`scale`"),
    "a tensor behind the back of autograd": (
        "pass",
        "pass",
        "teacher.weight.data.lerp_(student.weight.data, 0.1)",
        "+ ((model(batch.x) - teacher(batch.x)) ** 2).mean()",
        "`teacher.weight`",
    ),
    "an array": ("scale = numpy.ones(1)", "scale[:] += 1", "pass", "* float(scale[0])", "`scale`"),
    "a random generator": (
        "rng = numpy.random.default_rng(0)",
        "pass",
        "pass",
        "* rng.random()",
        "`rng`",
    ),
    "a random generator of torch": (
        "rng = torch.Generator().manual_seed(0)",
        "pass",
        "pass",
        "* float(torch.rand((), generator=rng))",
        "`rng`",
    ),
    "a global": ("pass", "global total; total += 1", "pass", "* total", "`total`"),
    "a list among the globals": ("SEEN.clear()", "SEEN.append(1)", "pass", "* len(SEEN)", "`SEEN`"),
    "an iterator": ("it = iter(range(1000))", "pass", "pass", "* (1 + next(it))", "`it`"),
    "a generator": ("it = numbers()", "pass", "pass", "* (1 + next(it))", "`it`"),
    "a default": ("pass", "(lambda rows=SEEN: rows.append(1))()", "pass", "* len(SEEN)", "`SEEN`"),
    "an attribute of the student": (
        "student.scale = 1.0",
        "pass",
        "student.scale *= 1.1",
        "* student.scale",
        "`student.scale`",
    ),
    "what is trained": (
        "pass",
        "pass",
        "student.bias.requires_grad_(False)",
        "",
        "`student.bias`",
    ),
    "something on the task": ("task.seen = 0", "task.seen += 1", "pass", "* task.seen", "task.seen"),
    "what shows nothing": ("import array; box = array.array('d', [1.0])", "box[0] += 1", "pass", "* box[0]", "`box`"),
}


@pytest.mark.parametrize("what", UNSEEN)
def test_state_that_nobody_declared_is_found_and_then_the_job_starts_anew(job_of, tmp_path, caplog, what):
    setup, loss, on_step, term, named = UNSEEN[what]
    job, registry = job_of(training(setup, loss, on_step, term), checkpoint_every=None)
    expected = run_job(job, tmp_path / "whole", registry=registry)
    assert expected.status == "ok", expected.error
    with caplog.at_level(logging.WARNING), interrupting() as written:
        again = run_job(job.model_copy(update={"checkpoint_every": 0.0}), tmp_path / "again", registry=registry)
    require_equal(tmp_path, again, expected)
    assert written == []
    told = [record.getMessage() for record in caplog.records if "no checkpoint" in record.getMessage()]
    assert len(told) == 1, "it says so once"
    assert named in told[0]
    assert "state=[...]" in told[0], "and what to do"


SEEN = {
    "constants": ("weights = {'a': [1.0, (2.0,)]}", "pass", "pass", "* weights['a'][0]", ""),
    "a frozen network": ("pass", "pass", "pass", "+ ((model(batch.x) - teacher(batch.x)) ** 2).mean()", ""),
    "a list that every step empties": ("rows = []", "rows.append(batch)", "rows.clear()", "* len(rows)", ""),
    "values": ("v = Values(n=0)", "v.n += 1", "pass", "* v.n", ", state=[v]"),
    "a module": (
        "norm = torch.nn.BatchNorm1d(1)",
        "pass",
        "pass",
        "+ (norm(model(batch.x)) - norm.running_mean).mean() ** 2",
        ", state=[norm]",
    ),
    "generators of the task": ("rng = task.rng('a')", "pass", "pass", "* rng.random()", ""),
    "generators that the loss makes": ("pass", "pass", "pass", "* task.rng('a').random()", ""),
    "the task and what it gives": ("data, fn = task.train_loader(), task.validate", "fn(model)", "data[0]", "", ""),
}


@pytest.mark.parametrize("what", SEEN)
def test_what_does_not_change_or_is_declared_stops_no_checkpoint(job_of, tmp_path, what):
    setup, loss, on_step, term, options = SEEN[what]
    job, registry = job_of(training(setup, loss, on_step, term, options))
    expected = run_job(job, tmp_path / "whole", registry=registry)
    outcome, stopped = run_in_two(job, tmp_path / "again", 3, registry=registry)
    require_equal(tmp_path, outcome, expected)
    assert stopped == 3
    assert outcome.provenance["resumed"] == [{"fit": 0, "step": 4, "steps": 8}]


LOADERS = {
    "samples of the student": (
        "own(task, student)",
        """
        def own(task, model):
            for batch in task.train_loader() * 100:
                yield type(batch)(batch.x, model(batch.x).detach() + 1)
        """,
        "no checkpoint of this training",
    ),
    "other batches each time": (
        "own(task)",
        """
        def own(task):
            import os
            for batch in task.train_loader() * 100:
                yield type(batch)(batch.x + os.getrandom(1)[0] / 1000, batch.y)
        """,
        "does not give the same batches again",
    ),
}


@pytest.mark.parametrize("what", LOADERS)
def test_a_loader_that_cannot_be_brought_to_its_position_is_not_trusted(job_of, tmp_path, caplog, what):
    made, code, words = LOADERS[what]
    body = training(options=f", loader={made}") + "".join(f"{line[8:]}\n" for line in code.splitlines())
    job, registry = job_of(body)
    with caplog.at_level(logging.WARNING):
        outcome, _ = run_in_two(job, tmp_path / "again", 3, registry=registry)
    assert outcome.status == "ok", outcome.error
    assert "resumed" not in outcome.provenance
    assert words in caplog.text


def damage_header(folder):
    (folder / "header.json").write_text("{")


def damage_file(folder):
    file = next(folder.glob("*.pt"))
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def cut_file(folder):
    file = next(folder.glob("*.pt"))
    file.write_bytes(file.read_bytes()[:-10])


def other_module(folder):
    header = json.loads((folder / "header.json").read_text())
    header["modules"]["kdbench.training.loop"] = "0" * 16
    (folder / "header.json").write_text(json.dumps(header))


def other_job(folder):
    header = json.loads((folder / "header.json").read_text())
    (folder / "header.json").write_text(json.dumps({**header, "job": "0" * 16}))


def other_version(folder):
    header = json.loads((folder / "header.json").read_text())
    (folder / "header.json").write_text(json.dumps({**header, "torch": "1.0"}))


def no_header(folder):
    (folder / "header.json").unlink()


HARMS = {
    damage_header: "cannot be read",
    damage_file: "content that was written",
    cut_file: "not whole",
    other_module: "kdbench.training.loop was changed",
    other_job: "written for job 0000000000000000",
    other_version: "written for torch 1.0",
    no_header: "",
}


@pytest.mark.parametrize("harm", HARMS, ids=lambda harm: harm.__name__)
def test_a_checkpoint_that_does_not_fit_is_left_out(job_of, tmp_path, caplog, harm):
    job, registry = job_of(training())
    expected = run_job(job, tmp_path / "whole", registry=registry)
    assert run_interrupted(job, tmp_path / "again", 3, registry=registry) is None
    harm(tmp_path / "again" / spool.CHECKPOINT)
    with caplog.at_level(logging.WARNING):
        outcome = run_job(job, tmp_path / "again", registry=registry)
    require_equal(tmp_path, outcome, expected)
    assert "resumed" not in outcome.provenance
    assert HARMS[harm] in caplog.text


def test_a_method_that_trains_otherwise_than_before_starts_anew(job_of, tmp_path, caplog):
    """Its source is the same, but it depends on something outside."""
    flag = tmp_path / "flag"
    job, registry = job_of(
        training(setup=f"import os; lr = 0.1 if os.path.exists({str(flag)!r}) else 0.2", options=", lr=lr")
    )
    assert run_interrupted(job, tmp_path / "again", 3, registry=registry) is None
    flag.touch()
    with caplog.at_level(logging.WARNING):
        outcome = run_job(job, tmp_path / "again", registry=registry)
    require_equal(tmp_path, outcome, run_job(job, tmp_path / "whole", registry=registry))
    assert "other arguments than before" in caplog.text


def test_what_cannot_be_saved_costs_the_checkpoint_alone(job_of, tmp_path, caplog):
    job, registry = job_of(training("v = Values(own=Own())", options=", state=[v]"), checkpoint_every=0.0)
    with caplog.at_level(logging.WARNING), interrupting() as written:
        outcome = run_job(job, tmp_path / "job", registry=registry)
    assert outcome.status == "ok", outcome.error
    assert written == []
    assert "state[0]['own'] is a Own" in caplog.text


def test_a_full_disk_costs_the_checkpoint_alone(job_of, tmp_path, caplog, monkeypatch):
    def full(self, name, record):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Checkpoints, "_save", full)
    job, registry = job_of(training(), checkpoint_every=0.0)
    with caplog.at_level(logging.WARNING):
        outcome = run_job(job, tmp_path / "job", registry=registry)
    assert outcome.status == "ok", outcome.error
    assert "No space left" in caplog.text


@pytest.mark.parametrize("after", [0, 1, 3])
def test_whatever_was_written_of_a_checkpoint_when_the_job_was_killed(job_of, tmp_path, monkeypatch, after):
    """The job is killed before every single thing that the writing of a checkpoint does, the first or a later one."""
    job, registry = job_of(training("v = Values(n=0)", "v.n += 1", "pass", "* v.n", ", state=[v]"))
    expected = run_job(job, tmp_path / "whole", registry=registry)
    places = [(checkpoint.torch, "save"), (checkpoint.os, "fsync"), (checkpoint, "write_whole"), (Path, "unlink")]
    places += [(checkpoint, "file_digest"), (Path, "mkdir")]
    armed = SimpleNamespace(left=None)

    def guard(owner, name):
        real = getattr(owner, name)

        def guarded(*args, **kwargs):
            if armed.left is not None:
                armed.left -= 1
                if armed.left < 0:
                    raise Interrupted
            return real(*args, **kwargs)

        monkeypatch.setattr(owner, name, guarded)

    for owner, name in places:
        guard(owner, name)
    real, written = Checkpoints._write, []

    def write(self, fit, record):
        armed.left = point if len(written) == after else None
        real(self, fit, record)
        written.append(armed.left)
        armed.left = None

    monkeypatch.setattr(Checkpoints, "_write", write)
    for point in range(20):
        folder = tmp_path / f"point{point}"
        written.clear()
        try:
            run_job(job.model_copy(update={"checkpoint_every": 0.0}), folder, registry=registry)
        except Interrupted:
            armed.left = None
            spool.empty(folder, keep=(spool.CHECKPOINT,))
            outcome = run_job(job, folder, registry=registry)
            require_equal(tmp_path, outcome, expected)
            assert ("resumed" in outcome.provenance) or after == 0
        else:
            break
    assert point >= 5, "all points were met"
    assert written[after] == 0, "and there is no further one"


def test_checkpoints_come_no_more_often_than_asked(job_of, tmp_path, monkeypatch):
    """Every step takes ten seconds on a clock of the test's own; a checkpoint is due every 25."""
    clock = SimpleNamespace(now=0.0)
    fake = SimpleNamespace(monotonic=lambda: clock.now, perf_counter=lambda: clock.now, process_time=lambda: clock.now)
    for module in (loop, checkpoint):
        monkeypatch.setattr(module, "time", fake)
    steps = []
    real = Checkpoints._write

    def write(self, fit, record):
        steps.append(record["step"])
        real(self, fit, record)

    monkeypatch.setattr(Checkpoints, "_write", write)
    job, registry = job_of(PASSING, checkpoint_every=25.0)
    monkeypatch.setattr("kdbench.task.time.monotonic", lambda: clock.now, raising=False)
    monkeypatch.setattr(signal, "TEST_CLOCK", clock, raising=False)
    assert run_job(job, tmp_path / "job", registry=registry).status == "ok"
    assert steps == [3, 6]


PASSING = """
import signal
@hookimpl
def train(task, params):
    student = task.student()
    def on_step(step):
        signal.TEST_CLOCK.now += 10
    task.fit(student, lambda model, batch: ((model(batch.x) - batch.y) ** 2).mean(), on_step=on_step)
    return student
"""


def test_a_job_that_is_asked_to_stop_leaves_a_checkpoint_of_that_moment(job_of, tmp_path):
    """SIGTERM does then what it did before ``fit``: here it interrupts, in a job's process it ends it."""
    kill = "import os, signal\n        if step == 5 and not os.path.exists({flag!r}):\n            "
    kill += "open({flag!r}, 'w'); os.kill(os.getpid(), signal.SIGTERM)"
    job, registry = job_of(training(on_step=kill.format(flag=str(tmp_path / "flag"))), checkpoint_every=600)
    (tmp_path / "flag").touch()
    expected = run_job(job, tmp_path / "whole", registry=registry)
    (tmp_path / "flag").unlink()

    def interrupt(number, frame):
        raise Interrupted

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        with pytest.raises(Interrupted):
            run_job(job, tmp_path / "again", registry=registry)
        assert signal.getsignal(signal.SIGTERM) is interrupt
    finally:
        signal.signal(signal.SIGTERM, before)
    spool.empty(tmp_path / "again", keep=(spool.CHECKPOINT,))
    outcome = run_job(job, tmp_path / "again", registry=registry)
    require_equal(tmp_path, outcome, expected)
    assert outcome.provenance["resumed"] == [{"fit": 0, "step": 5, "steps": 8}]


def test_a_training_inside_another_is_part_of_it(job_of, tmp_path):
    on_step = (
        "task.fit(teacher.requires_grad_(True), lambda model, batch: model(batch.x).mean() ** 2, steps=1, "
        "spend='aux_steps') if step == 4 else None; teacher.requires_grad_(False)"
    )
    body = training(
        "teacher.eval()",
        on_step=on_step,
        term="+ ((model(batch.x) - teacher(batch.x)) ** 2).mean()",
        options=", state=[teacher]",
    )
    job, registry = job_of(body)
    expected = run_job(job, tmp_path / "whole", registry=registry)
    for after in (1, 4):
        outcome, stopped = run_in_two(job, tmp_path / f"again{after}", after, registry=registry)
        require_equal(tmp_path, outcome, expected)
        assert stopped == after


def test_seconds_of_earlier_attempts_count(job_of, tmp_path):
    job, registry = job_of(training(on_step="import time; time.sleep(0.05 if step < 5 else 0)"))
    outcome, stopped = run_in_two(job, tmp_path / "again", 4, registry=registry)
    assert stopped == 4
    assert outcome.cost["train_seconds"] > 0.2


def test_plain_values_are_what_can_be_read_without_running_code(tmp_path):
    import numpy as np

    value = {"a": [1, 2.5, None, "x", "", True, (1,)], 3: torch.ones(2), "n": np.float64(0.1)}
    torch.save(plain(value, "v"), tmp_path / "file")
    read = torch.load(tmp_path / "file", weights_only=True)
    assert read["a"] == value["a"]
    assert torch.equal(read[3], torch.ones(2))
    assert (type(read["n"]), read["n"]) == (float, 0.1)
    for bad in (object(), {1, 2}, b"", np.float32(1), np.ones(2)):
        with pytest.raises(Unsavable, match=r"v\['bad'\]"):
            plain({"bad": bad}, "v")


def test_a_part_of_a_large_tensor_is_saved_alone():
    large = torch.zeros(1000)
    assert plain(large[:10], "v").untyped_storage().nbytes() == 40
    assert plain(large, "v").data_ptr() == large.data_ptr()


def test_copies_share_nothing():
    value = {"a": [torch.ones(2)]}
    other = copied(value)
    value["a"][0].zero_()
    assert torch.equal(other["a"][0], torch.ones(2))
    assert bytes_of(other) == 8
