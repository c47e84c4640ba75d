"""One table over tasks: which boards count, what the rows are, what is left out and said."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import numpy as np
import pytest

from kdbench.cli.results import leaderboard
from kdbench.errors import UsageError
from kdbench.leaderboard import aggregate, boards, overall, render
from kdbench.leaderboard.boards import Selection
from kdbench.leaderboard.overall import Standings
from kdbench.store import duck
from tests.helpers.outcomes import grid, make_job, make_outcome, make_spec, put

SCORES = {"no_kd": [0.60, 0.61, 0.59], "kd": [0.70, 0.71, 0.70], "teacher": [0.9, 0.9, 0.9]}


def load(results: Path, metric: str | None = None, **selection: str) -> list[Standings]:
    return duck.query(results, lambda con: overall.load(con, Selection(**selection), metric))


def test_the_numbers_are_those_of_the_boards(tmp_path: Path) -> None:
    put(tmp_path, grid(SCORES | {"shaky": [0.99, 0.99, None]}, task="vision/one"))  # type: ignore[arg-type]
    put(tmp_path, grid(SCORES | {"new": [0.65, 0.66, 0.65]}, task="vision/two"))  # type: ignore[arg-type]
    (table,) = load(tmp_path)
    found = duck.query(tmp_path, boards.load_boards)
    rows = {row.label: row.total for row in table.rows}
    assert [board.task for board in table.boards] == ["vision/one", "vision/two"]
    gaps = [{row.label: row.gap for row in board.rows} for board in found]
    assert rows["kd"].gap is not None
    assert rows["kd"].gap.mean == pytest.approx(np.mean([gap["kd"].mean for gap in gaps]))  # type: ignore[union-attr]
    assert rows["kd"].rank == pytest.approx(0.5 + 1.5 * 5 / 4), "second of four on both tasks, scaled to five methods"
    assert (rows["kd"].tasks, rows["kd"].judged, rows["kd"].solved) == (2, 2, 2)
    assert (rows["shaky"].tasks, rows["shaky"].failed_jobs, rows["shaky"].solved) == (1, 1, 0)
    assert rows["new"].tasks == 1
    assert "2 of 5 methods have jobs on some of the tasks only" in " ".join(table.notes)
    assert table.rows[0].label == "teacher"
    assert [row.total.rank for row in table.rows] == sorted(row.total.rank for row in table.rows)  # type: ignore[type-var]


def test_methods_on_fewer_than_half_of_the_tasks_come_last(tmp_path: Path) -> None:
    put(tmp_path, grid(SCORES | {"made_for_it": [0.95, 0.96, 0.95]}, task="vision/one"))  # type: ignore[arg-type]
    for name in ("two", "three"):
        put(tmp_path, grid(SCORES, task=f"vision/{name}"))  # type: ignore[arg-type]
    (table,) = load(tmp_path)
    assert [row.label for row in table.rows] == ["teacher", "kd", "no_kd", "made_for_it"]
    assert table.rows[-1].total.rank == 1
    (note,) = table.notes
    assert note.endswith("; 1 on fewer than half come last")


def test_average_ranks_by_hand(tmp_path: Path) -> None:
    put(tmp_path, grid({"a": [0.9, 0.9], "b": [0.8, 0.8], "c": [0.7, 0.7]}, task="vision/one"))
    put(tmp_path, grid({"a": [0.9, 0.9], "b": [0.8, None], "c": [0.7, 0.7]}, task="vision/two"))
    (table,) = load(tmp_path)
    assert {row.label: row.total.rank for row in table.rows} == {"a": 1, "b": 2.5, "c": 2.5}, "b failed on two"


def test_tracks_and_scales_are_not_averaged_over(tmp_path: Path) -> None:
    put(tmp_path, grid(SCORES, task="vision/one"))  # type: ignore[arg-type]
    put(tmp_path, grid(SCORES, task="vision/one", spec=make_spec("vision/one", scale="quick")))  # type: ignore[arg-type]
    put(tmp_path, grid(SCORES, task="llm/one"))  # type: ignore[arg-type]
    assert {table.title for table in load(tmp_path)} == {"llm@cpu", "vision@cpu", "vision@quick"}
    assert [table.title for table in load(tmp_path, track="llm")] == ["llm@cpu"]


def test_a_task_counts_once_with_the_definition_that_has_most_methods(tmp_path: Path) -> None:
    put(tmp_path, grid(SCORES, spec=make_spec(limits={"steps": 100})))  # type: ignore[arg-type]
    put(tmp_path, grid({"kd": [0.5, 0.6]}, spec=make_spec(limits={"steps": 200}), minutes=600.0))
    (table,) = load(tmp_path)
    (board,) = table.boards
    assert board.limits == {"steps": 100}
    assert len(table.rows) == 3
    (note,) = table.notes
    assert "budget 100 steps" in note
    assert "left out: 200 steps" in note
    with pytest.raises(ValueError, match="mixes budgets"):
        overall.standings(duck.query(tmp_path, lambda con: boards.load_boards(con, mix_budgets=True)))


def test_what_does_not_count_is_said(tmp_path: Path) -> None:
    put(tmp_path, grid(SCORES, task="vision/one"))  # type: ignore[arg-type]
    put(tmp_path, grid(SCORES, task="vision/two", gate=["teacher and student are too close"]))  # type: ignore[arg-type]
    put(tmp_path, grid({"kd": [0.5, 0.5]}, task="vision/three", extra={"sparsity": 0.5}))
    (table,) = load(tmp_path)
    assert [board.task for board in table.boards] == ["vision/one", "vision/three"]
    assert any("vision/two refuses a leaderboard" in note and "too close" in note for note in table.notes)
    (own,) = load(tmp_path, "sparsity")
    assert own.rows == []
    assert any("measured by methods themselves" in note for note in own.notes)
    assert "no task counts" in own.notes
    assert "no task counts" in render.standings_markdown([own])


def test_parameters_are_methods_of_their_own(tmp_path: Path) -> None:
    for alpha in (0.1, 0.9):
        for seed in (0, 1):
            job = make_job("kd", seed, params={"alpha": alpha}, label=f"kd(alpha={alpha})")
            put(tmp_path, make_outcome(job, 0.5 + alpha / 10 + seed / 100))
    (table,) = load(tmp_path)
    assert [(row.label, row.params) for row in table.rows] == [
        ("kd(alpha=0.9)", {"alpha": 0.9}), ("kd(alpha=0.1)", {"alpha": 0.1}),
    ]  # fmt: skip


def test_every_format_has_every_number(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for task in ("vision/one", "vision/two", "llm/one"):
        put(tmp_path, grid(SCORES | {"bad\x1b[31m": [0.5, None, None]}, task=task))  # type: ignore[arg-type]
    leaderboard(results=tmp_path, over_tasks=True, track="vision")
    text = capsys.readouterr().out
    assert text.splitlines()[0].startswith("vision@cpu over 2 tasks (one, two), by the headline metric of each")
    assert aggregate.RULE in text
    assert "4 on 2 tasks" in text
    assert "\x1b" not in text
    leaderboard(results=tmp_path, over_tasks=True, format="md")
    text = capsys.readouterr().out
    assert text.count("| average rank | 95 % interval |") == 2
    assert aggregate.RULE in text
    leaderboard(results=tmp_path, over_tasks=True, format="json")
    rows = json.loads(capsys.readouterr().out)
    leaderboard(results=tmp_path, over_tasks=True, format="csv")
    read = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [row["label"] for row in rows] == [row["label"] for row in read]
    first = rows[0]
    assert first["rank_low"] <= first["rank"] <= first["rank_high"]
    assert {name: first[name] for name in ("track", "label", "solved", "judged", "of_tasks", "failed_jobs")} == {
        "track": "llm", "label": "teacher", "solved": 1, "judged": 1, "of_tasks": 1, "failed_jobs": 0,
    }  # fmt: skip
    assert all(isinstance(row[name], int) for row in rows for name in ("tasks", "solved", "worse", "failed_tasks"))


@pytest.mark.parametrize(("options", "place"), [({"by": "flops"}, "--by"), ({"mix_budgets": True}, "--mix-budgets")])
def test_what_a_table_over_tasks_cannot_show(tmp_path: Path, options: dict[str, object], place: str) -> None:
    put(tmp_path, grid(SCORES))  # type: ignore[arg-type]
    with pytest.raises(UsageError, match=place):
        leaderboard(results=tmp_path, over_tasks=True, **options)  # type: ignore[arg-type]
