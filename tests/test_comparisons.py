"""The scripts that measure kdbench beside others: their arithmetic on planted numbers, small runs of the rest."""

from __future__ import annotations

import json
import sqlite3
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))

    def load(name: str) -> ModuleType:
        import importlib

        return importlib.import_module(name)

    return load


def script(name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(BENCHMARKS / name), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


# --- what they share --------------------------------------------------------------------------------------------------


def test_a_spread_is_the_median_between_the_extremes(bench):
    spread = bench("compare").Spread.of([5.0, 1.0, 2.0])
    assert spread == (2.0, 1.0, 5.0)
    assert spread.show(1000) == "2e+03 (1e+03-5e+03)"


def test_a_missed_goal_is_an_error_where_it_is_checked(bench, tmp_path: Path, capsys):
    import typer
    from rich.table import Table

    finish = bench("compare").finish
    file = tmp_path / "found.json"
    finish(Table("way"), {"rows": [1]}, ["too slow"], lines=["here"], path=file, check=False)
    assert "not met: too slow" in capsys.readouterr().out
    assert json.loads(file.read_text()) == {"rows": [1], "unmet": ["too slow"]}
    finish(Table("way"), {}, [], lines=[], path=None, check=True)
    with pytest.raises(typer.Exit) as stopped:
        finish(Table("way"), {}, ["too slow"], lines=[], path=None, check=True)
    assert stopped.value.exit_code == 1


def test_rounds_are_added_to_those_of_the_same_settings_alone(bench, tmp_path: Path):
    compare = bench("compare")
    file = tmp_path / "found.json"
    assert compare.earlier(file, {"steps": 1}, False) == []
    with pytest.raises(compare.Failed, match="--continue needs a file"):
        compare.earlier(file, {"steps": 1}, True)
    file.write_text(json.dumps({"settings": {"steps": 1}, "rounds": [{"cpu": 2.0}]}))
    assert compare.earlier(file, {"steps": 1}, True) == [{"cpu": 2.0}]
    with pytest.raises(compare.Failed, match="differs from"):
        compare.earlier(file, {"steps": 2}, True)


def test_a_worker_answers_every_line_and_says_why_it_ended(bench, tmp_path: Path):
    compare = bench("compare")
    path = tmp_path / "double.py"
    path.write_text(
        "import json, sys\n"
        "factor = json.loads(sys.argv[1])['factor']\n"
        "for line in sys.stdin:\n"
        "    print(json.dumps({'found': factor * int(line)}), flush=True)\n"
    )
    worker = compare.Worker(path, {"factor": 3})
    assert [worker.ask(str(number))["found"] for number in (1, 5)] == [3, 15]
    with pytest.raises(compare.Failed, match="invalid literal for int"):
        worker.ask("one")
    worker.close()


def test_what_this_process_computes_is_not_of_other_programs(bench):
    around = bench("compare").Surroundings()
    before, after = around._ours(), around._ours()
    sum(range(3 * 10**6))
    assert before <= after < around._ours()
    assert "cores busy meanwhile" in around.end()


# --- training_step ----------------------------------------------------------------------------------------------------


def test_weights_are_compared_by_how_far_they_moved(bench, tmp_path: Path):
    import torch
    from safetensors.torch import save_file

    difference = bench("training_step").difference
    moved = {"before/w": torch.zeros(4), "after/w": torch.full((4,), 2.0)}
    save_file(moved, tmp_path / "reference")
    save_file({**moved, "after/w": torch.full((4,), 2.1)}, tmp_path / "near")
    assert difference(tmp_path / "reference", tmp_path / "reference") == 0
    assert difference(tmp_path / "near", tmp_path / "reference") == pytest.approx(0.05)


@pytest.fixture
def step_row(bench):
    module = bench("training_step")
    flat = module.Spread.of([1.0])
    return lambda way, whole: module.Row("texts", way, 0.0, flat, flat, 0.0, module.Spread.of([whole]), whole)


def test_the_step_is_within_its_limit_and_ahead_of_trainers(bench, step_row):
    missed = bench("training_step").missed
    good = [step_row("by hand", 1.0), step_row("kdbench", 1.02), step_row("Trainer", 1.1)]
    assert missed(good) == []
    (slow,) = missed([*good[:1], step_row("kdbench", 1.05), good[2]])
    assert "1.050 of the processor time of the loop by hand" in slow
    (behind,) = missed([*good[:2], step_row("Trainer", 1.01)])
    assert "Trainer takes 1.01, kdbench 1.02" in behind


def test_batches_are_epochs_whose_last_batch_may_be_smaller(bench, monkeypatch):
    import torch

    monkeypatch.syspath_prepend(str(BENCHMARKS / "peers"))
    orders = bench("turns").orders
    made = orders(10, 4, 7, seed=3)
    assert [len(rows) for rows in made] == [4, 4, 2, 4, 4, 2, 4]
    assert torch.cat(made[:3]).sort().values.tolist() == list(range(10))
    draw = torch.Generator().manual_seed(3)
    assert torch.equal(torch.cat(made[:3]), torch.randperm(10, generator=draw)), "as the loaders of kdbench do"


@pytest.mark.full
@pytest.mark.parametrize("case", ["images", "text, cached", "text, live teacher"])
def test_a_step_by_hand_and_by_fit_give_the_same_weights(case: str, tmp_path: Path):
    file = tmp_path / "found.json"
    done = script(
        "training_step.py", "--case", case, "--steps", "1", "--rounds", "1", "--no-peers", "--json", str(file)
    )
    assert done.returncode == 0, done.stderr
    rows = json.loads(file.read_text())["rows"]
    assert {row["way"] for row in rows} == {"by hand", "kdbench"}
    assert all(row["error"] < 1e-3 < row["whole"] for row in rows)


# --- startup ----------------------------------------------------------------------------------------------------------


def test_modules_are_counted_and_what_is_printed_is_looked_at(bench):
    startup = bench("startup")
    command = startup.Command("hello", [sys.executable, "-c", "import json; print('hello')"], "help", "hello")
    assert 10 < startup.imported(command) < 200
    with pytest.raises(startup.Failed, match="'goodbye' expected"):
        startup.imported(startup.Command("hello", command.words, "help", "goodbye"))


def test_commands_with_a_limit_are_measured_in_turn(bench):
    startup = bench("startup")
    words = [sys.executable, "-c", "print('hello')"]
    commands = [startup.Command(name, words, "help", "hello", limit) for name, limit in (("a", 30.0), ("b", 0.0))]
    rows = startup.measured(commands, 2)
    assert [(row.name, row.met) for row in rows] == [("a", True), ("b", False)]
    assert all(0 < row.cpu.least <= row.cpu.median <= row.cpu.most for row in rows)


def test_dropped_in_methods_make_up_the_number(bench, tmp_path: Path, monkeypatch):
    startup = bench("startup")
    monkeypatch.setattr(startup, "_count", lambda variables: 3)
    monkeypatch.setattr(startup.time, "sleep", lambda seconds: None)
    commands = startup.ours(tmp_path, 5, "vision")
    assert {command.says for command in commands if command.does == "list"} == {"5 methods"}
    from kdbench.registry import discover

    made = sorted((tmp_path / "plugins").glob("*.py"))
    known = discover(made).methods
    assert len(made) == 2
    assert {"vision/made_0", "vision/made_1"} <= known.keys()


# --- queries ----------------------------------------------------------------------------------------------------------


def test_answers_are_equal_up_to_rounding_or_no_measurement(bench):
    queries = bench("queries")
    queries.same("board", {"a": 1.0}, {"a": 1.0 + 1e-15})
    for theirs in ({"a": 1.1}, {"b": 1.0}, {}):
        with pytest.raises(queries.Failed, match="the answers differ"):
            queries.same("board", {"a": 1.0}, theirs)


def test_boards_have_to_be_faster_than_the_goal(bench):
    queries = bench("queries")

    def row(jobs: int, seconds: float, board: bool = True):
        times = {queries.OPEN: queries.Spread.of([seconds]), queries.TRACKER: queries.Spread.of([1.0])}
        return queries.Row(jobs, "mean", board, times, times)

    assert queries.missed([row(10_000, 0.04), row(10_000, 0.5, False), row(100_000, 0.5)]) == []
    (reason,) = queries.missed([row(10_000, 0.1)])
    assert "10 times as fast as MLflow" in reason


def test_a_store_that_is_repeated_has_boards_of_its_own_tasks(bench, tmp_path: Path):
    queries = bench("queries")
    from kdbench.store import duck

    shape = queries.Shape(tasks=8, methods=2, metrics=3)
    queries.fill(tmp_path, shape)
    duck.sync(tmp_path)
    before = queries.command(tmp_path, queries.means), queries.command(tmp_path, queries.board)
    queries.repeat_store(tmp_path, 3)
    after = queries.command(tmp_path, queries.means)
    assert queries.command(tmp_path, queries.board) == before[1]
    assert len(after) == 3 * len(before[0])
    for (task, method), mean in before[0].items():
        assert after[f"{task}-2", method] == after[task, method] == mean


def test_tracked_runs_are_repeated_under_other_tasks(bench, tmp_path: Path):
    queries = bench("queries")
    database = tmp_path / "mlflow.db"
    con = sqlite3.connect(database)
    con.execute("CREATE TABLE runs (run_uuid TEXT PRIMARY KEY, name TEXT)")
    for name in queries.TABLES[1:]:
        con.execute(f"CREATE TABLE {name} (key TEXT, value TEXT, run_uuid TEXT, PRIMARY KEY (key, run_uuid))")
    con.execute("INSERT INTO runs VALUES (?, 'kd')", ["0" * 31 + "1"])
    con.execute("INSERT INTO params VALUES ('task', 't', ?)", ["0" * 31 + "1"])
    con.execute("INSERT INTO params VALUES ('seed', '0', ?)", ["0" * 31 + "1"])
    con.commit()
    con.close()
    queries.repeat_tracked(database, 3)
    con = sqlite3.connect(database)
    rows = con.execute("SELECT key, value FROM params JOIN runs USING (run_uuid) ORDER BY key, value").fetchall()
    con.close()
    assert rows == [("seed", "0")] * 3 + [("task", "t"), ("task", "t-1"), ("task", "t-2")]


# --- store_writes -----------------------------------------------------------------------------------------------------


def test_a_write_must_not_take_longer_than_log_batch(bench):
    writes = bench("store_writes")

    def rows(spool: float, ingest: float, batch: float) -> list:
        values = {writes.SPOOL: spool, writes.INGEST: ingest, writes.BATCH: batch}
        return [writes.Row(name, writes.Spread.of([v]), writes.Spread.of([v])) for name, v in values.items()]

    assert writes.missed(rows(1.0, 2.0, 4.0)) == []
    assert ["1.25" in reason for reason in writes.missed(rows(2.0, 3.0, 4.0))] == [True, True]


@pytest.mark.full
def test_outcomes_are_written_both_ways(tmp_path: Path):
    file = tmp_path / "found.json"
    done = script("store_writes.py", "--count", "3", "--rounds", "1", "--json", str(file))
    assert done.returncode == 0, done.stderr
    assert all(row["cpu"][0] > 0 for row in json.loads(file.read_text())["rows"])


# --- shared_teacher and utilization -----------------------------------------------------------------------------------


def test_the_suite_has_every_method_with_three_seeds(bench, tmp_path: Path):
    from kdbench.plan import make_plan
    from kdbench.registry import discover
    from kdbench.suite import load_suite

    shared = bench("shared_teacher")
    plan = make_plan(load_suite(shared.suite(tmp_path, 20, 40, 8)), discover(), tmp_path / "results")
    assert len(plan.jobs) == 60
    assert len({job.label for job in plan.jobs}) == 20
    assert [need.present for need in plan.teachers] == [False], "one teacher, which no pack has"


def test_what_a_suite_takes_is_told_without_its_teacher(bench):
    shared = bench("shared_teacher")
    scripts = {"scripts": {"kd": 40.0}, "teachers": {"kd": 20.0}, "apart": 0.0, "busy": 0.0}
    one = shared.Round(suite=130.0, wall=70.0, train=100.0, evaluate=3.0, teacher=20.0, **scripts)
    assert one.beyond == pytest.approx(1.1)
    assert "1.100 of the students' own training" in shared.missed([one])[0]
    assert shared.missed([replace(one, suite=124.0)]) == []


def test_the_workers_time_is_all_accounted_for(bench):
    utilization = bench("utilization")

    def outcome(start: int, end: int, train: float) -> dict:
        moments = {"started_at": f"2026-01-01T00:00:{start:02d}", "finished_at": f"2026-01-01T00:00:{end:02d}"}
        return {**moments, "cost": {"train_seconds": train, "eval_seconds": 1.0}}

    raw = [outcome(0, 10, 8.0), outcome(0, 20, 18.0), outcome(11, 17, 5.0)]
    found = utilization.of(raw, 20.0, 2)
    assert (found.train, found.evaluate, found.inside, found.tail) == (31.0, 3.0, 2.0, 3.0)
    assert found.between == pytest.approx(1.0), "between the first job of a worker and its second"
    assert found.share == pytest.approx(34 / 40)
    assert utilization.missed([found]) == ["train and evaluate have 0.850 of the workers' time, less than 0.95"]
    assert utilization.missed([utilization.of([outcome(0, 20, 19.0)] * 2, 20.0, 2)]) == []
