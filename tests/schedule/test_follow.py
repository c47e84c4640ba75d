"""Following a log: the test plays the run between two looks."""

from __future__ import annotations

import pytest

from kdbench.schedule import attempts, logs
from kdbench.schedule.follow import follow
from kdbench.schedule.watch import Watch
from kdbench.store import spool
from tests.helpers.outcomes import make_job, make_outcome, put
from tests.helpers.runs import make_run

JOB = make_job()


class Scene:
    """A run of one job, and what it does at every pause of whoever follows it."""

    def __init__(self, results):
        self.results = results
        self.claim = None

    def start(self):
        attempts.require_writable(self.results)
        self.claim = attempts.claim(self.results, JOB.id)
        self.again()

    def again(self):
        self.claim.clear()
        self.write(b"")

    def write(self, data):
        with (self.claim.folder / spool.LOG).open("ab") as file:
            file.write(data)

    def finish(self, **outcome):
        spool.write_outcome(self.claim.folder, make_outcome(JOB, **outcome))
        self.claim.publish()
        self.claim.release()

    def give_up(self):
        self.claim.release()

    def follow(self, *actions, tail=None):
        """Lines, and notes as ``(note,)``."""
        script = iter(actions)

        def play(seconds):
            for action in next(script):
                action()

        said = [(s.text,) if s.note else s.text for s in follow(self.results, JOB.id, tail=tail, sleep=play)]
        assert next(script, None) is None, "it went on until the end"
        return said


@pytest.fixture
def scene(tmp_path):
    scene = Scene(tmp_path)
    yield scene
    if scene.claim is not None:
        scene.claim.release()


@pytest.fixture
def run(tmp_path):
    """A run that goes on and has the job to do."""
    run = make_run(tmp_path, [JOB])
    with Watch(run, interval=600) as watch:
        watch.kdbench_run_started(run=run)
        yield watch


def test_a_job_that_has_ended(scene):
    put(scene.results, make_outcome(JOB, minutes=2), log="one\ntwo\nthree")
    assert scene.follow() == ["one", "two", "three", ("ended as ok after 2 min",)]
    assert scene.follow(tail=1) == ["three", ("ended as ok after 2 min",)]


def test_from_before_its_start_to_its_end(scene, run):
    write = scene.write
    assert scene.follow(
        (),
        (scene.start, lambda: write(b"one\ntw")),
        (),
        (lambda: write("o\nthr\u00e9".encode()[:-1]),),
        (lambda: write("\u00e9".encode()[1:] + b"e\n"),),
        (lambda: write(b"at the very end"), scene.finish),
    ) == [("it waits for a slot, or for its teacher",), "one", "two", "thr\u00e9e", "at the very end"] + [
        ("ended as ok after 1 min",)
    ]


def test_a_job_that_is_tried_once_more(scene, run):
    scene.start()
    scene.write(b"first\n")
    failed = {"score": None, "status": "oom"}
    assert scene.follow(
        (lambda: scene.write(b"out of memory"), scene.again, lambda: scene.write(b"second\n")),
        (scene.give_up,),
        (scene.start, lambda: scene.write(b"third\n")),
        (lambda: scene.finish(**failed),),
    ) == [
        "first",
        "out of memory",
        ("the job starts once more",),
        "second",
        ("it waits for a slot, or for its teacher",),
        ("the job starts once more",),
        "third",
        ("ended as oom after 1 min: planted",),
    ]


def test_a_job_that_is_done_anew_is_not_taken_for_ended(scene, run):
    put(scene.results, make_outcome(JOB, 0.5), log="old\n")
    assert scene.follow((), (scene.start, lambda: scene.write(b"new\n")), (), (scene.finish,)) == [
        "old",
        ("it waits for a slot, or for its teacher",),
        ("the job starts once more",),
        "new",
        ("ended as ok after 1 min",),
    ]


def test_an_interrupted_job_has_no_end_but_a_reason(scene):
    scene.start()
    scene.write(b"one\n")
    assert scene.follow((scene.give_up,)) == ["one", ("it was interrupted: the same run command does it again",)]


def test_a_log_that_is_written_anew_in_its_place(scene):
    scene.start()
    scene.write(b"a long line that is gone\n")
    path = scene.claim.folder / spool.LOG
    assert scene.follow((lambda: path.write_bytes(b"new\n"),), (scene.give_up,))[:2] == [
        "a long line that is gone",
        "new",
    ]


def test_a_log_whose_end_is_kept_back_says_so_once(scene):
    scene.start()
    line = b"x" * 1023 + b"\n"
    scene.write(line * (logs.HEAD // len(line)))
    said = scene.follow((), (), (scene.finish,), tail=2)
    assert said[:2] == ["x" * 1023] * 2
    assert [text for text in said if "512.0 KiB" in str(text)] == [
        ("it has printed over 512.0 KiB: what follows appears at its end",)
    ]
    assert said[-1] == ("ended as ok after 1 min",)
