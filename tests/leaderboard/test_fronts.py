"""Boards against a cost: what counts as spent, who is on the front, and what is printed and written of it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from kdbench.cli.results import leaderboard
from kdbench.errors import UsageError
from kdbench.leaderboard import boards, fronts, render
from kdbench.leaderboard.boards import Board, Selection
from kdbench.leaderboard.pareto import pareto
from kdbench.resolve import UNITS
from kdbench.store import duck
from tests.helpers.outcomes import make_job, make_outcome, make_spec, put

FLOPS = {"no_kd": 1e9, "kd": 2e9, "slow": 4e9, "best": 8e9, "broken": 0.5e9, "teacher": 0.1e9}
SCORES = {
    "no_kd": [0.70, 0.71, 0.69],
    "kd": [0.80, 0.81, 0.80],
    "slow": [0.79, 0.81, 0.81],
    "best": [0.90, 0.91, 0.90],
    "broken": [0.99, 0.99, None],
    "teacher": [0.95, 0.95, 0.95],
}


@pytest.fixture
def results(tmp_path: Path) -> Path:
    for method, scores in SCORES.items():
        for seed, score in enumerate(scores):
            outcome = make_outcome(
                make_job(method, seed),
                score,
                status="ok" if score is not None else "oom",
                cost={"flops": FLOPS[method]},
            )
            outcome.cost.pop("teacher_queries")
            if method in ("kd", "slow", "best"):
                outcome.cost["teacher_queries"] = FLOPS[method] / 1e6
            put(tmp_path, outcome)
    return tmp_path


def load(results: Path, metric: str | None = None) -> Board:
    (board,) = duck.query(results, lambda con: boards.load_boards(con, Selection(), metric))
    return board


def by_label(board: Board, values: object) -> dict[str, float]:
    return {row.label: value for row, value in zip(board.rows, values, strict=True)}  # type: ignore[call-overload]


def test_the_front_is_that_of_the_methods_that_compete(results: Path) -> None:
    board = load(results)
    found = boards.front(board, "flops")
    on, share = by_label(board, found.on), by_label(board, found.share)
    assert {label for label, value in on.items() if value} == {"no_kd", "kd", "best"}
    assert share["no_kd"] == share["best"] == 1
    assert 0 < share["slow"] < 1, "three seeds do not say that slow is worse than kd"
    assert np.isnan(share["broken"]), "a method with failed jobs neither is on the front nor keeps others from it"
    assert np.isnan(share["teacher"]), "what the ceiling cost is not metered"


def test_the_front_is_the_tested_one(results: Path) -> None:
    board = load(results)
    part = [index for index, row in enumerate(board.rows) if row.label not in ("broken", "teacher")]
    scores = np.stack([board.rows[index].values for index in part])
    expected = pareto(scores, fronts.spent(board, "flops")[part], "max")
    found = fronts.front(board, "flops")
    assert found.on[part].tolist() == expected.on.tolist()
    assert found.share[part] == pytest.approx(expected.share)


def test_less_is_better_on_a_board_that_says_so(results: Path) -> None:
    board = load(results, "nll")  # 1 - top1 in these outcomes
    assert board.direction == "min"
    assert by_label(board, fronts.front(board, "flops").on) == by_label(
        load(results), fronts.front(load(results), "flops").on
    )


def test_what_is_counted_and_has_no_entry_was_not_spent(results: Path) -> None:
    board = load(results)
    queries = by_label(board, fronts.cost_estimates(board, "teacher_queries"))
    assert queries["no_kd"].mean == 0  # type: ignore[attr-defined]
    assert queries["kd"].mean == 2000  # type: ignore[attr-defined]
    assert by_label(board, fronts.front(board, "teacher_queries").on)["no_kd"]
    assert UNITS - {"flops"} <= fronts.COUNTED, "every unit of a budget but flops is counted whenever it is spent"


def test_what_is_measured_and_has_no_entry_is_unknown(results: Path) -> None:
    outcome = make_outcome(make_job("own_loop", 0), 0.99)
    del outcome.cost["flops"]
    put(results, outcome)
    board = load(results)
    assert by_label(board, fronts.cost_estimates(board, "flops"))["own_loop"] is None
    assert np.isnan(by_label(board, fronts.front(board, "flops").share)["own_loop"])


def test_failed_jobs_cost_nothing_that_is_counted(results: Path) -> None:
    board = load(results)
    spent = by_label(board, fronts.spent(board, "teacher_queries"))["broken"]
    assert np.isnan(spent).tolist() == [False, False, True]  # type: ignore[attr-defined]


def test_costs_of_a_board(results: Path) -> None:
    board = load(results)
    assert fronts.costs_of(board) == ["flops", "parameters", "steps", "teacher_queries", "train_seconds"]
    for unknown in ("generated_tokens", "nothing"):
        assert not fronts.front(board, unknown).on.any()
        assert np.isnan(fronts.front(board, unknown).share).all()
    with pytest.raises(UsageError, match="did you mean 'flops'"):
        fronts.require_cost([board], "flop")


def test_refused_and_undirected_boards_have_no_front(results: Path) -> None:
    board = load(results)
    board.direction = None
    assert not fronts.front(board, "flops").on.any()
    board.direction, board.refused = "max", ["reason"]
    assert np.isnan(fronts.front(board, "flops").share).all()


def test_the_table_goes_from_cheap_to_dear(results: Path) -> None:
    board = load(results)
    columns, rows, _ = render.board_table(board, "flops")
    place = {name: columns.index(name) for name in ("method", "flops", "front")}
    assert [row[place["method"]] for row in rows] == ["teacher", "no_kd", "kd", "slow", "best", "broken"]
    cells = {row[place["method"]]: row[place["front"]] for row in rows}
    assert cells["kd"].startswith("yes (")  # type: ignore[attr-defined]
    assert cells["slow"].startswith("no (")  # type: ignore[attr-defined]
    assert cells["broken"] == cells["teacher"] == ""
    assert rows[1][place["flops"]] == "1G ± 0"
    assert "params" not in columns


def test_programs_get_the_same_front(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    board = load(results)
    found = fronts.front(board, "flops")
    leaderboard(results=results, by="flops", format="json")
    rows = {row["label"]: row for row in json.loads(capsys.readouterr().out)}
    assert {label: row["front"] for label, row in rows.items()} == {
        label: None if np.isnan(share) else on
        for (label, on), share in zip(by_label(board, found.on).items(), found.share, strict=True)
    }
    assert rows["slow"]["front_share"] == pytest.approx(by_label(board, found.share)["slow"])
    assert (rows["kd"]["cost"], rows["kd"]["cost_mean"]) == ("flops", 2e9)
    assert rows["kd"]["cost_low"] <= 2e9 <= rows["kd"]["cost_high"]
    leaderboard(results=results, by="flops", format="md")
    text = capsys.readouterr().out
    assert "| flops | front |" in text
    assert "no other method is at least as good in both score and flops" in text
    leaderboard(results=results, by="flops", format="csv")
    assert "front_share" in capsys.readouterr().out.splitlines()[0]


def test_a_refused_board_has_the_same_columns(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spec = make_spec(scale="quick")
    put(results, make_outcome(make_job("kd", 0, spec=spec), 0.5, gate=["too close"]))
    leaderboard(results=results, by="flops", format="json")
    rows = json.loads(capsys.readouterr().out)
    assert len({tuple(row) for row in rows}) == 1
    (refused,) = (row for row in rows if row["refused"])
    assert refused["front"] is None


def test_a_board_that_lacks_the_cost_says_so(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    put(results, make_outcome(make_job("kd", 0, task="vision/other"), 0.5, cost={"generated_tokens": 5.0}))
    leaderboard(results=results, by="generated_tokens")
    other, toy, _ = capsys.readouterr().out.split("\n\n")
    assert "front: none, as no job here metered generated_tokens" in toy
    assert "front: none" not in other
