"""Boards as text: digits, what is printed under them, hostile names, formats."""

from __future__ import annotations

from pathlib import Path

import pytest

from kdbench.errors import UsageError
from kdbench.leaderboard import boards, formats, render
from kdbench.leaderboard.boards import Board, Selection
from kdbench.leaderboard.statistics import Estimate
from kdbench.store import duck
from tests.helpers.outcomes import grid, make_job, make_outcome, put


def load(results: Path) -> Board:
    (board,) = duck.query(results, lambda con: boards.load_boards(con, Selection()))
    return board


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, ""), (0, "0"), (12.345, "12.3"), (999.7, "1k"), (6400, "6.4k"), (1.5e9, "1.5G"), (2e18, "2E")],
)
def test_compact(value: float | None, text: str) -> None:
    assert render.compact(value) == text


def test_estimates_have_the_digits_of_their_interval() -> None:
    assert render.estimate(Estimate(0.93061, 0.9238, 0.9374, 5)) == "0.9306 ± 0.0068"
    assert render.estimate(Estimate(12.3456, None, None, 1)) == "12.35"
    assert render.estimate(Estimate(123.4, 100.0, 146.8, 5)) == "123 ± 23"
    assert render.estimate(Estimate(0.5, 0.5, 0.5, 5)) == "0.5 ± 0"


def test_hostile_text_is_shown_as_text() -> None:
    assert render.plain("a\x1b[31mb\nc\r\u202e") == "a\\x1b[31mb\\nc\\r\\u202e"
    assert "\\|" in render.markdown(["a"], [["x|y"]])


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, ""),
        (Estimate(2345.0, None, None, 1), "2.35k"),
        (Estimate(2e9, 2e9, 2e9, 5), "2G ± 0"),
        (Estimate(6400.0, 6240.0, 6560.0, 5), "6.40k ± 0.16k"),
        (Estimate(2.5, 2.1, 2.9, 5), "2.50 ± 0.40"),
        (Estimate(0.0, 0.0, 0.0, 5), "0 ± 0"),
    ],
)
def test_amounts_have_the_digits_of_their_interval(value: Estimate | None, text: str) -> None:
    assert render.amount(value) == text


def test_the_rule_for_failures_is_under_each_board_that_has_one(tmp_path: Path) -> None:
    put(tmp_path, grid({"kd": [0.5, 0.6], "no_kd": [0.4, 0.5]}))
    assert render.FAILURE_RULE not in render.boards_markdown([load(tmp_path)])
    put(tmp_path, make_outcome(make_job("kd", 2), status="oom"))
    assert render.FAILURE_RULE in render.boards_markdown([load(tmp_path)])


def test_a_job_without_a_value_counts_as_a_failure(tmp_path: Path) -> None:
    put(tmp_path, [make_outcome(make_job("kd", seed), 0.5) for seed in (0, 1)])
    put(tmp_path, make_outcome(make_job("kd", 2), float("nan")))
    board = load(tmp_path)
    assert not board.rows[0].complete
    assert render.FAILURE_RULE in render.rules(board)


def test_the_level_of_the_tests_is_under_each_board_that_has_any(tmp_path: Path) -> None:
    put(tmp_path / "two", grid({"kd": [0.5, 0.6], "no_kd": [0.4, 0.51]}))
    text = render.boards_markdown([load(tmp_path / "two")])
    assert "Holm-corrected among a method's comparisons, 5 % per method" in text
    put(tmp_path / "one", grid({"kd": [0.5], "no_kd": [0.4]}))
    assert "Holm" not in render.boards_markdown([load(tmp_path / "one")])


def test_output_that_nobody_reads_is_no_mistake_of_a_file() -> None:
    def closed(text: str) -> None:
        raise BrokenPipeError

    with pytest.raises(BrokenPipeError):
        formats.output("csv", ["a"], [[1]], right=(), path=None, show=closed, table=lambda: None)
    with pytest.raises(UsageError, match="cannot be written"):
        formats.output("csv", ["a"], [[1]], right=(), path=Path("/nowhere/at/all"), show=print, table=lambda: None)


def test_training_is_shown_by_what_it_took_of_the_device(tmp_path: Path) -> None:
    busy = {"train_seconds": 90.0, "device_seconds": 30.0}
    put(tmp_path / "new", grid({"kd": [0.6, 0.7]}, cost=busy))
    put(tmp_path / "old", grid({"kd": [0.6, 0.7]}, cost={"train_seconds": 90.0}))
    assert "| 30 s |" in render.boards_markdown([load(tmp_path / "new")])
    assert "| 1 min 30 s |" in render.boards_markdown([load(tmp_path / "old")])
