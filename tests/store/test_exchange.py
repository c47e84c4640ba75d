"""Results that move between machines: all of them arrive, none is lost or half done, and bad ones change nothing."""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pytest
from filelock import FileLock

from kdbench.errors import Problem, UsageError
from kdbench.job import Outcome
from kdbench.leaderboard.selection import Selection
from kdbench.schedule import attempts
from kdbench.store import duck, exchange, export, membership, schema, spool, sweep
from kdbench.store.exchange import take_over
from tests.helpers.outcomes import grid, make_job, make_outcome, make_spec, put

CURVE = [{"step": 1, "loss": 2.0, "lr": 0.1}, {"step": 1, "loss": 1.5}, {"step": 2, "loss": math.inf}, {"step": 2}]

NASTY = 'two\r\nlines, "quoted", \\ and \x1b[31m; NULL;  \tnaïve \U0001f600'


def fill(results: Path) -> list[Outcome]:
    """Outcomes with everything that outcomes can hold."""
    spec = make_spec(limits={"steps": 100, "generated_tokens": 5})
    outcomes = grid({"kd": [0.5, 0.6], "no_kd": [0.4, None]}, spec=spec)
    odd = make_job(
        "odd", 7, params={"a": [1, 2.5, None, NASTY], "b": {"c": 1e-320}, "n": ""}, label=NASTY, timeout=12.5
    )
    odd = odd.model_copy(update={"keep": ("model",), "resources": odd.resources.model_copy(update={"gpus": 0.25})})
    outcomes.append(
        make_outcome(odd, 0.1 + 0.2, extra={"": 1.0, NASTY: math.nan, "inf": -math.inf}, cost={"flops": 1e300 / 3})
    )
    broken = make_outcome(make_job("broken", 3, task="llm/toy", spec=make_spec("llm/toy")), status="oom")
    assert broken.error is not None
    broken.error.message, broken.error.traceback, broken.attempts = NASTY, NASTY * 3, 4
    put(results, [*outcomes, broken], curve=CURVE, examples={"top1": np.arange(3)}, log="log\n")
    for outcome in (*outcomes, broken):
        outcome.artifacts = spool.artifacts(spool.job_folder(results, outcome.id))
        spool.write_outcome(spool.job_folder(results, outcome.id), outcome)
    membership.add(results, "toy", [outcome.id for outcome in outcomes], "sqlite:///theirs.db")
    membership.add(results, NASTY, [broken.id, "planned-only"], None)
    duck.sync(results)
    return [*outcomes, broken]


@pytest.fixture(scope="module")
def theirs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("theirs")
    fill(folder)
    return folder


def source_of(theirs: Path, kind: str, work: Path) -> Path:
    """The results as one of the kinds of sources."""
    if kind == "folder":
        return theirs
    if kind == "duckdb":
        return Path(shutil.copyfile(duck.published_path(theirs), work / "store.duckdb"))  # named as the schema in it
    assert kind in ("parquet", "csv")
    export.export(theirs, work / "exported", kind, Selection())  # type: ignore[arg-type]
    return work / "exported"


KINDS = ("folder", "duckdb", "parquet", "csv")

kinds = pytest.mark.parametrize("kind", KINDS)


def views(results: Path, *, without: str = "provenance, artifacts") -> dict[str, list[tuple[Any, ...]]]:
    """Everything that the views show, but for what an import changes."""

    def read(con: duckdb.DuckDBPyConnection) -> dict[str, list[tuple[Any, ...]]]:
        local = {"suites", "methods", "claims"}  # of what was planned, and what is installed, on a machine
        found = {
            view.name: f"SELECT * FROM {view.name} ORDER BY ALL" for view in schema.VIEWS if view.name not in local
        }
        found["jobs"] = f"SELECT * EXCLUDE ({without}) FROM jobs ORDER BY id"
        return {name: con.execute(query).fetchall() for name, query in found.items()}

    return duck.query(results, read)


def tree(folder: Path) -> dict[str, str]:
    """Digest of every file, but for locks."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file() and not path.name.endswith(".lock")
    }


def read(results: Path, id: str) -> Outcome:
    outcome = spool.read_outcome(spool.job_folder(results, id))
    assert outcome is not None
    return outcome


# --- what arrives -----------------------------------------------------------------------------------------------------


@kinds
def test_everything_arrives_and_says_where_it_is_from(theirs: Path, tmp_path: Path, kind: str) -> None:
    source = source_of(theirs, kind, tmp_path)
    before = tree(theirs)
    ours = tmp_path / "ours"
    taken = take_over(source, ours)
    ids = [folder.name for folder in spool.iter_folders(theirs)]
    assert len(ids) == 6
    assert (sorted(taken.new), taken.better, taken.known, taken.differences) == (ids, [], [], [])
    assert tree(theirs) == before
    for id in ids:
        there, here = read(theirs, id), read(ours, id)
        origin = here.provenance.pop("imported")
        assert origin["from"] == str(source)
        assert origin["at"] >= "2026"
        changed = {"artifacts", "provenance"}
        assert json.loads(here.model_dump_json(exclude=changed)) == json.loads(there.model_dump_json(exclude=changed))
        assert here.provenance == there.provenance
        assert list(here.job.spec["limits"]) == list(there.job.spec["limits"])
        folder = spool.job_folder(ours, id)
        finite = [point for point in spool.read_curve(spool.job_folder(theirs, id)) if len(point) > 1]
        assert [point for point in spool.read_curve(folder) if len(point) > 1] == finite
        if kind == "folder":
            assert here.artifacts == there.artifacts == [spool.CURVE, spool.EXAMPLES]
            assert (folder / spool.LOG).read_text() == "log\n"
            assert "without" not in origin
        else:
            assert here.artifacts == [spool.CURVE]
            assert origin["without"] == [spool.EXAMPLES]
    assert views(ours) == views(theirs)
    assert {members.suite: set(members.jobs) - {"planned-only"} for members in membership.every(ours)} == {
        members.suite: set(members.jobs) - {"planned-only"} for members in membership.every(theirs)
    }
    assert all(members.tracking is None for members in membership.every(ours)), "their server is not ours"
    assert "planned-only" not in {id for members in membership.every(ours) for id in members.jobs}
    assert taken.bare == ([] if kind == "folder" else taken.new)


def test_an_export_names_no_folders_of_the_machine_that_wrote_it(tmp_path: Path) -> None:
    job = make_job("kd", 0).model_copy(update={"method_file": Path("/home/me/secret/methods/kd.py")})
    outcome = make_outcome(job, status="failed")
    assert outcome.error is not None
    outcome.error.traceback = 'File "/home/me/secret/methods/kd.py", line 3'
    outcome.provenance["imported"] = {
        "from": "/home/me/secret/there",
        "before": {"from": "/home/me/secret", "without": ["a/b"]},
    }
    put(tmp_path / "results", outcome)
    for form in export.FORMATS:
        export.export(tmp_path / "results", tmp_path / form, form, Selection())
        take_over(tmp_path / form, tmp_path / f"from-{form}")
        arrived = read(tmp_path / f"from-{form}", job.id)
        assert arrived.error is not None
        assert arrived.job.method_file == Path("kd.py")
        assert arrived.error.traceback == 'File "methods/kd.py", line 3'
        before = arrived.provenance["imported"]["before"]
        assert before == {"from": "there", "before": {"from": "secret", "without": ["a/b"]}}
        assert take_over(tmp_path / form, tmp_path / "results").known == [job.id]


@kinds
def test_a_second_import_changes_nothing(theirs: Path, tmp_path: Path, kind: str) -> None:
    source = source_of(theirs, kind, tmp_path)
    ours = tmp_path / "ours"
    take_over(source, ours)
    before = tree(ours / "jobs"), tree(ours / "suites"), duck.state_of(duck.published_path(ours))
    taken = take_over(source, ours)
    assert (taken.new, taken.better, taken.differences, taken.busy) == ([], [], [], [])
    assert len(taken.known) == 6
    assert (tree(ours / "jobs"), tree(ours / "suites"), duck.state_of(duck.published_path(ours))) == before


def test_what_came_by_any_way_is_the_same_for_the_next_machine(theirs: Path, tmp_path: Path) -> None:
    chain = theirs
    for number, kind in enumerate(("csv", "duckdb", "parquet", "folder")):
        work = tmp_path / str(number)
        work.mkdir()
        source = source_of(chain, kind, work)
        take_over(source, work / "results")
        chain = work / "results"
    assert views(chain) == views(theirs)
    origin = read(chain, next(spool.iter_folders(theirs)).name).provenance["imported"]
    depth = 1
    while "before" in origin:
        origin, depth = origin["before"], depth + 1
    assert depth == 4
    assert duck.rebuild(chain) == 6
    assert views(chain) == views(theirs)


def test_a_dry_run_says_the_same_and_changes_nothing(theirs: Path, tmp_path: Path) -> None:
    ours = tmp_path / "ours"
    planned = take_over(theirs, ours, dry_run=True)
    assert not ours.exists()
    assert planned == take_over(theirs, ours)


# --- both sides -------------------------------------------------------------------------------------------------------


@kinds
def test_ours_stays_unless_it_failed_and_theirs_did_not(tmp_path: Path, kind: str) -> None:
    theirs, ours = tmp_path / "theirs", tmp_path / "ours"
    same, differs, better, worse, both = (make_job("kd", seed) for seed in range(5))
    put(theirs, [make_outcome(job, 0.5) for job in (same, differs, better)], log="theirs\n")
    put(theirs, [make_outcome(job, status="failed") for job in (worse, both)], log="theirs\n")
    put(ours, [make_outcome(same, 0.5), make_outcome(differs, 0.25), make_outcome(worse, 0.5)], log="ours\n")
    put(ours, [make_outcome(better, status="timeout"), make_outcome(both, status="oom")], log="ours\n")
    membership.add(theirs, "shared", [job.id for job in (same, differs, better, worse, both)], None)
    membership.add(ours, "shared", [same.id], "http://ours")
    duck.sync(theirs)
    before = {job.id: tree(spool.job_folder(ours, job.id)) for job in (same, differs, worse, both)}
    taken = take_over(source_of(theirs, kind, tmp_path), ours)
    assert (taken.new, taken.better) == ([], [better.id])
    assert sorted(taken.known) == sorted(before)
    assert before == {id: tree(spool.job_folder(ours, id)) for id in before}
    assert read(ours, better.id).headline == 0.5
    log = spool.job_folder(ours, better.id) / spool.LOG
    assert (log.read_text() if kind == "folder" else not log.exists()) in ("theirs\n", True)
    found = [(item.id, item.metric, item.ours, item.theirs) for item in taken.differences]
    assert found == [(differs.id, "top1", 0.25, 0.5), (differs.id, "nll", 0.75, 0.5)]
    (members,) = membership.every(ours)
    assert members.tracking == "http://ours"
    assert set(members.jobs) == {job.id for job in (same, differs, better, worse, both)}


def test_undefined_metrics_are_equal_and_missing_ones_are_not() -> None:
    job = make_job()
    one = make_outcome(job, 0.5, metrics={"odd": math.nan, "gone": 1.0})
    other = make_outcome(job, 0.5, metrics={"odd": math.nan, "more": 2.0}, extra={"seconds": 3.0})
    found = {(item.metric, item.ours, item.theirs) for item in exchange.differences(one, other)}
    assert found == {("gone", 1.0, None), ("more", None, 2.0)}


def test_a_damaged_outcome_of_ours_is_left_alone_and_reported(tmp_path: Path) -> None:
    theirs, ours = tmp_path / "theirs", tmp_path / "ours"
    (outcome,) = put(theirs, make_outcome(make_job()))
    path = spool.job_folder(ours, outcome.id) / spool.OUTCOME
    path.parent.mkdir(parents=True)
    path.write_text("{")
    problems: list[Problem] = []
    assert take_over(theirs, ours, problems=problems).known == [outcome.id]
    assert path.read_text() == "{"
    assert {problem.place for problem in problems} == {str(path)}


def test_jobs_that_run_here_are_left_to_the_run(tmp_path: Path) -> None:
    theirs, ours = tmp_path / "theirs", tmp_path / "ours"
    running, failed, other = (make_job("kd", seed) for seed in range(3))
    put(theirs, [make_outcome(running), make_outcome(failed, status="failed"), make_outcome(other)])
    attempts.require_writable(ours)
    for job in (running, failed):
        checkpoint = ours / "running" / job.id / spool.CHECKPOINT
        checkpoint.mkdir(parents=True)
        (checkpoint / spool.CHECKPOINT_HEADER).write_text("{}")
    with FileLock(ours / "running" / f"{running.id}.lock"):
        taken = take_over(theirs, ours)
    assert sorted(taken.busy) == sorted([running.id, failed.id])
    assert taken.new == [other.id]
    assert spool.has_checkpoint(ours / "running" / failed.id), "a failure elsewhere does not end what goes on here"
    # once nobody has it, theirs is taken, and what was begun here is not needed any more
    assert take_over(theirs, ours).new == [running.id]
    assert not (ours / "running" / running.id).exists()


def test_two_imports_at_once_bring_each_job_once(theirs: Path, tmp_path: Path) -> None:
    ours = tmp_path / "ours"
    command = [sys.executable, "-c", IMPORT, str(theirs), str(ours)]
    both = [subprocess.Popen(command, stderr=subprocess.PIPE) for _ in range(2)]
    for process in both:
        _, errors = process.communicate()
        assert process.returncode == 0, errors.decode()
    assert take_over(theirs, ours).new == []
    assert views(ours) == views(theirs)


# --- kills ------------------------------------------------------------------------------------------------------------

IMPORT = """
import sys
from pathlib import Path
from kdbench.store.exchange import take_over
take_over(Path(sys.argv[1]), Path(sys.argv[2]))
"""

KILLS = r"""
import os, random, shutil, signal, sys, time, traceback
from pathlib import Path
import pyarrow.parquet, scipy.special  # before the forks, so that each of them is quick
from kdbench.leaderboard import claims
from kdbench.leaderboard.selection import Selection
from kdbench.registry import discover
from kdbench.store import exchange, export, ingest, sources

what, base, step, random_kills = sys.argv[1], sys.argv[4], int(sys.argv[5]), int(sys.argv[6])
source, start = Path(sys.argv[2]), Path(sys.argv[3])
SEEN = {f"os.{name}" for name in ("mkdir", "rename", "remove", "rmdir", "scandir", "listdir", "truncate")} | {"open"}

def work(target):
    if what == "import":
        exchange.take_over(source, target)
    else:
        export.export(source, target, what, Selection())

def attempt(target, at, seconds=None):
    pid = os.fork()
    if pid == 0:
        left = at
        def look(event, arguments):
            nonlocal left
            if event in SEEN and any(str(argument).startswith(str(target)) for argument in arguments):
                left -= 1
                if left == 0:
                    os.kill(os.getpid(), signal.SIGKILL)
        sys.addaudithook(look)
        try:
            work(target)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    if seconds is not None:
        time.sleep(seconds)
        os.kill(pid, signal.SIGKILL)
    _, status = os.waitpid(pid, 0)
    return status

def begin(name):
    target = Path(base, name)
    if start.exists():
        shutil.copytree(start, target)
    return target

discover()
at = 1
while True:
    began = time.monotonic()
    status = attempt(begin(f"at-{at}"), at)
    if status == 0:
        break
    assert status == signal.SIGKILL, status
    at += step
whole = time.monotonic() - began
draw = random.Random(0)
for number in range(random_kills):
    status = attempt(begin(f"after-{number}"), -1, draw.uniform(0, whole))
    assert status in (0, signal.SIGKILL), status
"""


def killed(what: str, source: Path, start: Path, base: Path, *, step: int, random_kills: int) -> list[Path]:
    """Targets of work that was killed at every ``step``-th access to its files, and at random moments."""
    base.mkdir()
    command = [sys.executable, "-c", KILLS, what, str(source), str(start), str(base), str(step), str(random_kills)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return sorted(base.iterdir())


def test_a_killed_import_leaves_whole_jobs_and_goes_on(tmp_path: Path) -> None:
    theirs, start = tmp_path / "theirs", tmp_path / "start"
    jobs = [make_job("kd", seed) for seed in range(3)]
    put(theirs, [make_outcome(job, 0.5) for job in jobs], curve=CURVE[:2], log="theirs\n")
    put(start, make_outcome(jobs[0], status="failed"), log="ours\n", curve=CURVE)
    duck.sync(start)
    membership.add(theirs, "suite", [job.id for job in jobs], None)
    targets = killed("import", theirs, start, tmp_path / "kills", step=5, random_kills=8)
    assert len(targets) >= 20
    begun = set()
    for target in targets:
        finished = spool.statuses(target)
        begun.add(len(finished))
        for id, status in finished.items():
            folder = spool.job_folder(target, id)
            if status == "ok":
                assert spool.artifacts(folder) == [spool.CURVE]
                assert (folder / spool.LOG).read_text() == "theirs\n"
                assert read(target, id).provenance["imported"]
            else:
                assert id == jobs[0].id
        assert len(finished) == len(list(spool.iter_folders(target))), "no job without an outcome"
        taken = take_over(theirs, target)
        assert len(taken.new) + len(taken.better) + len(taken.known) == 3
        assert spool.statuses(target) == {job.id: "ok" for job in jobs}
        assert [members.suite for members in membership.every(target)] == ["suite"]
        attempts.sweep(target)
        assert list((target / "running").iterdir()) == []
        assert [remains.path.name for remains in sweep.of_results(target, 0) if "temporary" not in remains.reason] == []
    assert begun == {1, 2, 3}, "kills came before, between and after the jobs"
    assert views(targets[len(targets) // 2]) == views(theirs)


@pytest.mark.parametrize("earlier", [False, True], ids=["new", "over an earlier one"])
def test_a_killed_export_is_never_taken_for_a_whole_one(tmp_path: Path, earlier: bool) -> None:
    results, start = tmp_path / "results", tmp_path / "start"
    if earlier:
        put(results, make_outcome(make_job("old")))
        export.export(results, start, "csv", Selection())
    put(results, grid({"kd": [0.5, 0.6]}))
    duck.sync(results)
    targets = killed("parquet", results, start, tmp_path / "kills", step=3 if earlier else 5, random_kills=3)
    numbers = set()
    for target in targets:
        if target.exists() and any(target.iterdir()):
            try:
                numbers.add(len(take_over(target, tmp_path / "ours", dry_run=True).new))
            except UsageError as error:
                assert "interrupted" in str(error) or "holds neither" in str(error)  # noqa: PT017
                numbers.add(-1)
        export.export(results, target, "parquet", Selection())
        names = {path.name for path in target.iterdir()}
        assert names == {export.MANIFEST, *(f"{table}.parquet" for table in export.TABLES)}
        assert len(take_over(target, tmp_path / "ours", dry_run=True).new) == (3 if earlier else 2)
    assert numbers >= ({1, 3, -1} if earlier else {-1})


# --- what is wrong ----------------------------------------------------------------------------------------------------


def refused(source: Path, tmp_path: Path, *words: str) -> None:
    """The import is refused with one message that says so, and changes nothing."""
    ours = tmp_path / "ours"
    if not ours.exists():
        put(ours, make_outcome(make_job("mine")))
        duck.sync(ours)
    before = tree(ours)
    with pytest.raises(UsageError) as caught:
        take_over(source, ours)
    assert tree(ours) == before
    assert len(caught.value.problems) == 1
    (problem,) = caught.value.problems
    assert str(source) in problem.place or problem.place in str(source)
    for word in words:
        assert word in str(problem)
    assert not list(tmp_path.rglob("evil"))


def test_what_is_not_there_or_no_results(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "bare" / "jobs").mkdir(parents=True)
    (tmp_path / "text.duckdb").write_text("hello" * 1000)
    (tmp_path / "void.duckdb").write_bytes(b"")
    duckdb.connect(str(tmp_path / "other.duckdb")).execute("CREATE TABLE jobs AS SELECT 1 AS id").close()
    refused(tmp_path / "none", tmp_path, "does not exist")
    refused(tmp_path / "empty", tmp_path, "neither jobs nor an export", "kdbench export")
    refused(tmp_path / "bare", tmp_path, "no finished jobs")
    refused(tmp_path / "text.duckdb", tmp_path, "not a store that can be read")
    refused(tmp_path / "void.duckdb", tmp_path)
    refused(tmp_path / "other.duckdb", tmp_path, "none of kdbench")


def test_the_results_themselves(theirs: Path) -> None:
    with pytest.raises(UsageError, match="imported into"):
        take_over(theirs, theirs)


HURT: dict[str, tuple[str, str]] = {
    "newer store": (f"UPDATE store.meta SET value = '{schema.VERSION + 1}' WHERE key = 'schema'", "update kdbench"),
    "no number of a version": ("UPDATE store.meta SET value = 'x' WHERE key = 'schema'", "cannot be read|can be read"),
    "no meta": ("DROP TABLE store.meta", "none of kdbench"),
    "other meta": ("ALTER TABLE store.meta RENAME value TO v", "can be read"),
    "view for a table": (
        "ALTER TABLE store.costs RENAME TO c; CREATE VIEW store.costs AS FROM store.c",
        "no table costs",
    ),
    "no column": ("ALTER TABLE store.curves DROP value", "no column value"),
    "type of a column": ("ALTER TABLE store.metrics ALTER value TYPE VARCHAR", "DOUBLE was expected"),
    "hostile id": ("UPDATE store.jobs SET id = '../../evil' WHERE slug = 'odd'", "not there"),
    "hostile id everywhere": (
        "".join(
            f"UPDATE store.{table} SET id = '../../evil' WHERE id = (SELECT max(id) FROM store.jobs);"
            for table in ("metrics", "costs", "curves", "suites", "jobs")
        ),
        "'../../evil' is not the id",
    ),
    "id of another": ("UPDATE store.jobs SET seed = 12345 WHERE slug = 'odd'", "is not the id of the job"),
    "no id": ("UPDATE store.jobs SET id = NULL WHERE slug = 'odd'", "job None has no id"),
    "twice": ("INSERT INTO store.jobs FROM store.jobs LIMIT 1", "more than once"),
    "metric twice": ("INSERT INTO store.metrics FROM store.metrics LIMIT 1", "twice"),
    "metrics of nobody": ("INSERT INTO store.metrics VALUES ('0123456789abcdef', 'm', 1, true)", "not there"),
    "status": ("UPDATE store.jobs SET status = 'great' WHERE slug = 'odd'", "status"),
    "negative seed": ("UPDATE store.jobs SET seed = -1 WHERE slug = 'odd'", "seed"),
    "no time": ("UPDATE store.jobs SET started_at = NULL WHERE slug = 'odd'", "started_at"),
    "params are no mapping": ("UPDATE store.jobs SET params = '[1]' WHERE slug = 'odd'", "params"),
    "provenance is no mapping": ("UPDATE store.jobs SET provenance = '3' WHERE slug = 'odd'", "provenance"),
    "null for a JSON": ("UPDATE store.jobs SET artifacts = NULL WHERE slug = 'odd'", "damaged"),
    "deep JSON": (f"UPDATE store.jobs SET asked = '{'[' * 900}{']' * 900}' WHERE slug = 'odd'", "odd|job"),
    "foreign field": ("UPDATE store.jobs SET asked = '{\"id\": \"x\"}' WHERE slug = 'odd'", "job"),
    "no task": ("DELETE FROM store.tasks", "damaged"),
    "other limits": ("UPDATE store.tasks SET limits = '{\"steps\": 1}'", "limits"),
    "curve without step": ("UPDATE store.curves SET step = NULL", "without a step"),
    "suite without name": ("UPDATE store.suites SET suite = NULL", "suite"),
}


@pytest.mark.parametrize("name", HURT)
def test_hurt_stores(theirs: Path, tmp_path: Path, name: str) -> None:
    path = source_of(theirs, "duckdb", tmp_path)
    statements, message = HURT[name]
    with duckdb.connect() as con:
        con.execute(f"ATTACH '{path}' AS other; USE other")
        con.execute(statements)
    with pytest.raises(UsageError, match=message):
        take_over(path, tmp_path / "probe", dry_run=True)
    refused(path, tmp_path)


def test_a_store_that_was_cut(theirs: Path, tmp_path: Path) -> None:
    path = source_of(theirs, "duckdb", tmp_path)
    whole = path.read_bytes()
    for size in (100, 5000, len(whole) // 4, len(whole) // 2):
        path.write_bytes(whole[:size])
        refused(path, tmp_path)


def test_a_store_with_noise_is_refused_or_was_not_hurt_where_it_counts(theirs: Path, tmp_path: Path) -> None:
    path = source_of(theirs, "duckdb", tmp_path)
    whole = path.read_bytes()
    ours, ends = tmp_path / "ours", set()
    for start in range(4096, len(whole), len(whole) // 8):
        noisy = bytearray(whole)
        noisy[start : start + 3000] = os.urandom(len(noisy[start : start + 3000]))
        path.write_bytes(noisy)
        try:
            ends.add(len(take_over(path, ours, dry_run=True).new))
        except UsageError:
            ends.add(0)
    assert ends <= {0, 6}
    assert 0 in ends


def test_the_store_of_another_program_reads_no_files(tmp_path: Path) -> None:
    """Defaults and views of a foreign database are not a way to the files of this machine."""
    path = tmp_path / "evil.duckdb"
    (tmp_path / "secret.csv").write_text("a\n1\n")
    with duckdb.connect(str(path)) as con:
        con.execute("CREATE SCHEMA store; CREATE TABLE store.meta (key VARCHAR, value VARCHAR)")
        con.execute(f"INSERT INTO store.meta VALUES ('schema', '{schema.VERSION}')")
        con.execute(f"CREATE VIEW store.jobs AS FROM read_csv('{tmp_path / 'secret.csv'}')")
    with pytest.raises(UsageError, match="no table jobs"):
        take_over(path, tmp_path / "ours")
    assert not (tmp_path / "ours").exists()


def test_a_foreign_view_in_place_of_the_version_reads_no_files(tmp_path: Path) -> None:
    path = tmp_path / "views.duckdb"
    (tmp_path / "secret.csv").write_text("key,value\nschema,1\n")
    with duckdb.connect(str(path)) as con:
        con.execute(f"CREATE SCHEMA store; CREATE VIEW store.meta AS FROM read_csv('{tmp_path / 'secret.csv'}')")
    with pytest.raises(UsageError, match="disabled|can be read"):
        take_over(path, tmp_path / "ours")


def edit(folder: Path, **changes: Any) -> None:
    path = folder / export.MANIFEST
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def sign(folder: Path) -> None:
    """Make the manifest agree with the files, as who wants to deceive does."""
    manifest = json.loads((folder / export.MANIFEST).read_text())
    for name, about in manifest["files"].items():
        content = (folder / name).read_bytes()
        about |= {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    edit(folder, files=manifest["files"])


def cut(folder: Path, name: str) -> None:
    (folder / name).write_bytes((folder / name).read_bytes()[:-40])


EXPORTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "newer form": (lambda folder: edit(folder, version=export.VERSION + 1), "update kdbench"),
    "newer tables": (lambda folder: edit(folder, schema_version=schema.VERSION + 1), "update kdbench"),
    "newer outcomes": (lambda folder: edit(folder, outcome_schema=99), "update kdbench"),
    "unknown format": (lambda folder: edit(folder, format="xlsx"), "format"),
    "interrupted": (lambda folder: edit(folder, complete=False), "interrupted"),
    "no manifest": (lambda folder: (folder / export.MANIFEST).write_text("{"), "not the manifest"),
    "missing": (lambda folder: (folder / "metrics.parquet").unlink(), "is missing"),
    "unnamed": (lambda folder: edit(folder, files={}), "is missing"),
    "cut": (lambda folder: cut(folder, "jobs.parquet"), "not the file that was exported"),
    "cut and signed": (lambda folder: (cut(folder, "jobs.parquet"), sign(folder)), "cannot be read"),
    "other content": (
        lambda folder: (shutil.copyfile(folder / "costs.parquet", folder / "metrics.parquet"), sign(folder)),
        "no column metric",
    ),
}


@pytest.mark.parametrize("name", EXPORTS)
def test_hurt_exports(theirs: Path, tmp_path: Path, name: str) -> None:
    folder = source_of(theirs, "parquet", tmp_path)
    hurt, message = EXPORTS[name]
    hurt(folder)
    ours = tmp_path / "ours"
    with pytest.raises(UsageError, match=message):
        take_over(folder, ours)
    assert not ours.exists()


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (",0.5,", ",half,", "cannot be read"),
        ("metric,", "measure,", "cannot be read"),
        ("\n", "\n\x00\x00", "cannot be read|not there"),
        ('"', "", "cannot be read|not there|job"),
    ],
    ids=["text for a number", "no column", "zeros", "open quotes"],
)
def test_hurt_csv(theirs: Path, tmp_path: Path, old: str, new: str, message: str) -> None:
    folder = source_of(theirs, "csv", tmp_path)
    path = folder / "metrics.csv"
    text = path.read_bytes().decode()
    assert old in text
    path.write_bytes(text.replace(old, new).encode())
    sign(folder)
    with pytest.raises(UsageError, match=message):
        take_over(folder, tmp_path / "ours")
    assert not (tmp_path / "ours").exists()


def hostile_folder(tmp_path: Path) -> tuple[Path, Path]:
    theirs = tmp_path / "theirs"
    _, bad = put(theirs, grid({"kd": [0.5, 0.6]}), curve=CURVE[:1])
    return theirs, spool.job_folder(theirs, bad.id)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"id": "../../evil"}, "is not the id"),
        ({"schema_version": 99}, "update kdbench"),
        ({"status": "great"}, "status"),
        ({"metrics": {"top1": "half"}}, "metrics"),
        ({"surplus": 1}, "surplus"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else None,
)
def test_hurt_outcomes(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    theirs, folder = hostile_folder(tmp_path)
    path = folder / spool.OUTCOME
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    refused(theirs, tmp_path, message)


def test_hurt_folders(tmp_path: Path) -> None:
    theirs, folder = hostile_folder(tmp_path)
    (folder / spool.CURVE).write_text("[]\n{}\n")
    refused(theirs, tmp_path, "curve")
    (folder / spool.CURVE).unlink()
    folder.rename(folder.with_name("0123456789abcdef"))
    refused(theirs, tmp_path, "is not the id")
    shutil.rmtree(folder.with_name("0123456789abcdef"))
    membership.add(theirs, "suite", ["planned"], None)
    next((theirs / "suites").glob("*.json")).write_text("{")
    refused(theirs, tmp_path, "suite")


def test_links_and_pipes_stay_behind(tmp_path: Path) -> None:
    theirs, folder = hostile_folder(tmp_path)
    (tmp_path / "secret").write_text("secret")
    (folder / "link").symlink_to(tmp_path / "secret")
    (folder / "folder").symlink_to(tmp_path)
    (folder / "model").mkdir()
    (folder / "model" / "weights").write_text("w")
    (folder / "model" / spool.CHECKPOINT).mkdir()
    (folder / "model" / spool.CHECKPOINT / spool.OUTCOME).write_text("not of this job")
    (folder / "model" / "secret").symlink_to(tmp_path / "secret")
    (folder / spool.CHECKPOINT).mkdir()
    (folder / spool.CHECKPOINT / spool.CHECKPOINT_HEADER).write_text("{}")
    os.mkfifo(folder / "pipe")
    os.mkfifo(folder.parent / "pipe")
    ours = tmp_path / "ours"
    assert len(take_over(theirs, ours).new) == 2
    kept = [spool.CURVE, "model/checkpoint/outcome.json", "model/weights"]
    assert spool.artifacts(spool.job_folder(ours, folder.name)) == kept
    (theirs / "linked").mkdir()
    (theirs / "jobs" / "0123456789abcdef").symlink_to(tmp_path)
    assert len(take_over(theirs, tmp_path / "more").new) == 2


# --- exports ----------------------------------------------------------------------------------------------------------


def test_an_export_is_what_its_manifest_says_and_repeats_to_the_bit(theirs: Path, tmp_path: Path) -> None:
    import pandas as pd

    first = export.export(theirs, tmp_path / "a [x]*' \"b", "parquet", Selection())
    second = export.export(theirs, tmp_path / "two", "parquet", Selection())
    assert first.files == second.files
    assert set(first.files) == {f"{table}.parquet" for table in export.TABLES}
    assert (first.schema_version, first.complete, first.selection) == (schema.VERSION, True, {})
    for name, about in first.files.items():
        path = tmp_path / "two" / name
        assert len(pd.read_parquet(path)) == about.rows
        assert hashlib.sha256(path.read_bytes()).hexdigest() == about.sha256
        assert path.stat().st_size == about.bytes
    assert export.read_manifest(tmp_path / "two") == second


def test_the_selection_takes_along_what_belongs_to_it(theirs: Path, tmp_path: Path) -> None:
    taken = {}
    for number, selection in enumerate(
        (Selection(suite="toy"), Selection(track="llm"), Selection(task="toy@cpu", track="vision"))
    ):
        folder = tmp_path / str(number)
        manifest = export.export(theirs, folder, "csv", selection)
        taken[number] = take_over(folder, tmp_path / f"ours{number}").new
        assert manifest.files["jobs.csv"].rows == len(taken[number])
        assert manifest.selection == {name: value for name, value in vars(selection).items() if value}
    assert [len(ids) for ids in taken.values()] == [5, 1, 5]
    assert [members.suite for members in membership.every(tmp_path / "ours1")] == [NASTY]
    with pytest.raises(UsageError, match="llm"):
        export.export(theirs, tmp_path / "none", "csv", Selection(track="lmm"))
    assert not (tmp_path / "none").exists()


def test_an_export_replaces_only_an_export(theirs: Path, tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "jobs.csv").write_text("my work")
    for place in (folder, folder / "jobs.csv"):
        with pytest.raises(UsageError):
            export.export(theirs, place, "csv", Selection())
    assert tree(tmp_path) == {"mine/jobs.csv": hashlib.sha256(b"my work").hexdigest()}
    other = tmp_path / "other"
    export.export(theirs, other, "csv", Selection(track="llm"))
    (other / "notes.txt").write_text("kept")
    export.export(theirs, other, "parquet", Selection())
    assert sorted(path.suffix for path in other.iterdir()) == [".json", *[".parquet"] * len(export.TABLES), ".txt"]
    assert len(take_over(other, tmp_path / "ours").new) == 6


def test_an_export_writes_nowhere_else(theirs: Path, tmp_path: Path) -> None:
    before = tree(theirs)
    with export._connect(duck.published_path(theirs), tmp_path / "in") as con:
        for statement in (
            f"COPY (SELECT 1) TO '{tmp_path / 'out.csv'}'",
            f"COPY (SELECT 1) TO '{tmp_path / 'in' / '..' / 'out.csv'}'",
            "DELETE FROM store.jobs",
            "SET enable_external_access = true",
            f"ATTACH '{tmp_path / 'x.duckdb'}'",
        ):
            with pytest.raises(duckdb.Error):
                con.execute(statement)
    assert list(tmp_path.iterdir()) == []
    assert tree(theirs) == before


def test_nothing_to_export(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="kdbench run"):
        export.export(tmp_path / "none", tmp_path / "out", "csv", Selection())
    assert not (tmp_path / "out").exists()


def test_a_full_disk_says_so_and_keeps_what_is_there(
    theirs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = spool.write_outcome, []

    def write(folder: Path, outcome: Outcome) -> Path:
        calls.append(folder)
        if len(calls) == 3:
            raise OSError(28, "No space left on device")
        return real(folder, outcome)

    monkeypatch.setattr(spool, "write_outcome", write)
    ours = tmp_path / "ours"
    with pytest.raises(UsageError, match="No space left"):
        take_over(theirs, ours)
    assert len(spool.statuses(ours)) == 2
    assert list((ours / "running").iterdir()) == []
    assert len(take_over(theirs, ours).new) == 4
