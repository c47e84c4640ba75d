"""Boards: what is compared with what, what is marked, and who ranks where."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from kdbench.cli.results import leaderboard
from kdbench.errors import UsageError
from kdbench.leaderboard import boards, comparison, frame, render
from kdbench.leaderboard.boards import Board, Selection
from kdbench.store import duck, membership
from tests.helpers.outcomes import grid, make_job, make_outcome, make_spec, put

SCORES = {
    "no_kd": [0.80, 0.81, 0.79, 0.80, 0.80],
    "kd": [0.90, 0.91, 0.89, 0.90, 0.90],
    "teacher": [0.95] * 5,
    "shaky": [0.99, 0.99, 0.99, 0.99, None],
    "broken": [None] * 5,
}


def load(results: Path, metric: str | None = None, **selection: str) -> list[Board]:
    return duck.query(results, lambda con: boards.load_boards(con, Selection(**selection), metric))


def test_a_board(tmp_path: Path) -> None:
    put(tmp_path, grid(SCORES))  # type: ignore[arg-type]
    (board,) = load(tmp_path)
    assert [(row.label, row.rank, row.n_failed) for row in board.rows] == [
        ("teacher", (1, 1), 0), ("kd", (2, 2), 0), ("no_kd", (3, 3), 0), ("shaky", (4, 4), 1), ("broken", None, 5),
    ]  # fmt: skip
    gaps = {row.label: row.gap.mean if row.gap else None for row in board.rows}
    assert gaps == pytest.approx({"teacher": 1, "kd": 2 / 3, "no_kd": 0, "shaky": 0.19 / 0.15, "broken": None})
    assert board.rows[1].costs["train_seconds"] == 2.5
    assert board.notes == []


def test_two_seeds_that_agree_rank_nobody_above_another(tmp_path: Path) -> None:
    scores = {"kd": [0.90, 0.90], "rkd": [0.91, 0.91]}
    put(tmp_path / "counted", grid(scores, cost={"test_examples": 100.0}))  # type: ignore[arg-type]
    (board,) = load(tmp_path / "counted")
    assert board.resolution == pytest.approx(0.01)
    assert [row.rank for row in board.rows] == [(1, 2), (1, 2)]
    put(tmp_path / "uncounted", grid(scores))  # type: ignore[arg-type]
    (board,) = load(tmp_path / "uncounted")
    assert board.resolution == 0
    assert [row.rank for row in board.rows] == [None, None]
    assert load(tmp_path / "counted", metric="nll")[0].resolution == 0, "the examples are those of the headline metric"


def test_ceiling_with_other_seeds(tmp_path: Path) -> None:
    put(tmp_path, grid({"no_kd": SCORES["no_kd"], "kd": SCORES["kd"]}))  # type: ignore[dict-item]
    put(tmp_path, make_outcome(make_job("teacher", 77), 0.95))
    (board,) = load(tmp_path)
    gaps = {row.label: row.gap.mean if row.gap else None for row in board.rows}
    assert gaps["kd"] == pytest.approx(2 / 3)


def test_gap_is_null_without_floor_ceiling_or_distance(tmp_path: Path) -> None:
    put(tmp_path, grid({"kd": [0.5, 0.6], "teacher": [0.9, 0.9]}))
    assert all(row.gap is None for row in load(tmp_path)[0].rows)
    put(tmp_path, grid({"no_kd": [0.5, 0.99]}))
    assert all(row.gap is None for row in load(tmp_path)[0].rows)


def test_less_is_better(tmp_path: Path) -> None:
    spec = make_spec(headline="loss", direction="min")
    put(tmp_path, grid({"no_kd": [0.5, 0.51, 0.49], "kd": [0.2, 0.21, 0.19], "teacher": [0.1] * 3}, spec=spec))
    (board,) = load(tmp_path)
    assert [row.label for row in board.rows] == ["teacher", "kd", "no_kd"]
    assert [row.rank for row in board.rows] == [(1, 1), (2, 2), (3, 3)]


def test_only_equal_tasks_share_a_board(tmp_path: Path) -> None:
    for steps in (100, 200):
        put(tmp_path, grid({"kd": [0.5, 0.6]}, spec=make_spec(limits={"steps": steps})))
    put(tmp_path, grid({"kd": [0.5, 0.6]}, spec=make_spec(scale="quick")))
    found = load(tmp_path)
    assert [(board.title, len(board.rows)) for board in found] == [
        ("vision/toy@quick", 1), ("vision/toy@cpu", 1), ("vision/toy@cpu", 1),
    ]  # fmt: skip
    assert "not comparable" in found[1].notes[0]
    assert {board.limits["steps"] for board in found[1:]} == {100, 200}
    assert [board.title for board in load(tmp_path, task="toy@quick")] == ["vision/toy@quick"]


def test_a_methods_own_metric_is_shown_without_rank(tmp_path: Path) -> None:
    put(tmp_path, [make_outcome(make_job("kd", seed), 0.5, extra={"sparsity": 0.1}) for seed in (0, 1)])
    put(tmp_path, grid({"no_kd": [0.4, 0.4]}))
    (board,) = load(tmp_path, metric="sparsity")
    assert [(row.label, row.rank) for row in board.rows] == [("kd", None)]
    assert any("not ranked" in note for note in board.notes)


def test_failures_and_interruptions(tmp_path: Path) -> None:
    put(tmp_path, grid({"kd": [0.5, 0.6, 0.7]}))
    for status, seed in (("oom", 3), ("timeout", 4), ("interrupted", 5)):
        put(tmp_path, make_outcome(make_job("kd", seed), status=status))  # type: ignore[arg-type]
    (row,) = load(tmp_path)[0].rows
    assert row.failures == {"oom": 1, "timeout": 1}
    assert not row.complete


def test_mixtures_are_marked(tmp_path: Path) -> None:
    old = [make_outcome(make_job("kd", seed), 0.5, modules="m0", minutes=1) for seed in (0, 1)]
    new = [make_outcome(make_job("no_kd", seed), 0.4, modules="m1", minutes=9) for seed in (0, 1)]
    put(tmp_path, [*old, *new])
    put(tmp_path, [make_outcome(make_job("taid", 0, protocol=0), 0.4, modules="m1", minutes=9)])
    (board,) = load(tmp_path)
    assert {row.label: row.mixed for row in board.rows} == {
        "kd": ["kdbench.task"], "no_kd": [], "taid": ["protocol 0"],
    }  # fmt: skip
    assert "kdbench.task, protocol 0" in board.notes[0]
    assert any("kd *" in cells for cells in render.board_table(board)[1])


def test_older_versions_of_a_method_are_left_out_and_counted(tmp_path: Path) -> None:
    put(tmp_path, [make_outcome(make_job("kd", seed, digest="old"), 0.1) for seed in (0, 1, 2)])
    put(tmp_path, [make_outcome(make_job("kd", seed, digest="new"), 0.9, minutes=60) for seed in (0, 1)])
    (board,) = load(tmp_path)
    assert board.rows[0].score is not None
    assert board.rows[0].score.mean == pytest.approx(0.9)
    assert "3 results of earlier versions" in board.notes[-1]


def test_a_row_from_before_a_default_changed_is_told_apart_from_the_present_one(tmp_path: Path) -> None:
    for minutes, params in ((1.0, {"weight": 0.5, "gone": 1}), (60.0, {"weight": 0.25}), (30.0, {"weight": 1.0})):
        put(tmp_path, [make_outcome(make_job("kd", seed, params=params), 0.5, minutes=minutes) for seed in (0, 1)])
    bracketed = [
        make_outcome(make_job("kd", 0, params={"t": t, "w": 2}, label="kd(w=2)"), 0.5, minutes=t) for t in (1.0, 9.0)
    ]
    put(tmp_path, bracketed)
    (board,) = load(tmp_path)
    assert {row.label for row in board.rows} == {
        "kd", "kd(weight=1)", "kd(gone=1, weight=0.5)", "kd(w=2)", "kd(w=2, t=1)",
    }  # fmt: skip


REASON = "exact match: teacher 0.300, student without distillation 0.290: a gap of 0.010, less than 0.15"


def test_a_refused_board_shows_the_reasons_and_no_rows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    put(tmp_path, grid({"kd": [0.5, 0.6], "no_kd": [0.4, 0.5]}, gate=[REASON, "second\x1b[2J"]))
    put(tmp_path, make_outcome(make_job("kd", 2), status="failed", minutes=99))
    put(tmp_path, grid({"kd": [0.5, 0.6]}, spec=make_spec(scale="quick")))
    open_board, refused = load(tmp_path)
    assert open_board.refused == []
    assert refused.refused == [REASON, "second\x1b[2J"]

    text = render.boards_markdown([refused, open_board])
    shown, rest = text.split("vision/toy@quick")
    assert f"- {REASON}\n- second\\x1b[2J\n" in shown
    assert render.header(refused) in shown
    assert "|" not in shown
    assert "| kd |" in rest

    leaderboard(results=tmp_path)
    printed = capsys.readouterr().out
    before, after = printed.split("vision/toy@cpu")
    assert REASON in after
    assert "no_kd" in before, "the open board has its table and its floor"
    assert "no_kd" not in after

    leaderboard(results=tmp_path, format="json")
    rows = json.loads(capsys.readouterr().out)
    assert [(row["scale"], row["label"], row["refused"]) for row in rows] == [
        ("quick", "kd", []), ("cpu", None, [REASON, "second\x1b[2J"]),
    ]  # fmt: skip
    assert rows[0].keys() == rows[1].keys()
    assert rows[1]["mean"] is None

    assert len(frame.results(tmp_path)) == 7, "the rows themselves stay open to programs"
    (item,) = comparison.compare(tmp_path, "kd", "no_kd")
    assert any(REASON in note for note in item.notes)


def test_the_newest_success_decides_whether_a_board_is_refused(tmp_path: Path) -> None:
    put(tmp_path, make_outcome(make_job("kd", 0), 0.5, gate=[REASON], minutes=1))
    assert load(tmp_path)[0].refused == [REASON]
    put(tmp_path, make_outcome(make_job("no_kd", 0), 0.4, minutes=60))
    assert load(tmp_path)[0].refused == []


def test_refused_boards_can_be_written_as_parquet(tmp_path: Path) -> None:
    from pyarrow import parquet

    put(tmp_path, grid({"kd": [0.5, 0.6]}, gate=[REASON]))
    put(tmp_path, grid({"kd": [0.5, 0.6]}, spec=make_spec(scale="quick")))
    leaderboard(results=tmp_path, output=tmp_path / "b.parquet")
    assert parquet.read_table(tmp_path / "b.parquet")["refused"].to_pylist() == [[], [REASON]]


def test_suites_share_jobs(tmp_path: Path) -> None:
    outcomes = put(tmp_path, grid({"kd": [0.5, 0.6], "no_kd": [0.4, 0.5]}, suite="first"))
    membership.add(tmp_path, "first", [o.id for o in outcomes], None)
    membership.add(tmp_path, "second", [o.id for o in outcomes if o.job.label == "kd"], None)
    assert [row.label for row in load(tmp_path, suite="second")[0].rows] == ["kd"]
    assert len(load(tmp_path, suite="first")[0].rows) == 2


@pytest.mark.parametrize(
    ("selection", "message"),
    [
        ({"task": "vision/toi"}, "did you mean 'vision/toy'"),
        ({"task": "toy@paper"}, "toy"),
        ({"track": "visoin"}, "did you mean 'vision'"),
        ({"suite": "tyo"}, "no results of the suite 'tyo'"),
        ({"method": "kdd"}, "did you mean 'kd'"),
        ({"track": "vision", "task": "llm/text"}, "llm/text"),
    ],
)
def test_unknown_names(tmp_path: Path, selection: dict[str, str], message: str) -> None:
    put(tmp_path, grid({"kd": [0.5]}))
    with pytest.raises(UsageError, match=message):
        load(tmp_path, **selection)


def test_unknown_metric(tmp_path: Path) -> None:
    put(tmp_path, grid({"kd": [0.5]}))
    with pytest.raises(UsageError, match="did you mean 'top1'"):
        load(tmp_path, metric="top2")


def test_frame(tmp_path: Path) -> None:
    put(tmp_path, make_outcome(make_job("kd", 0, params={"alpha": 0.5, "layers": [1, 2]}), 0.5, extra={"ece": 0.1}))
    put(tmp_path, make_outcome(make_job("no_kd", 1), status="failed"))
    table = frame.results(tmp_path)
    assert list(table["label"]) == ["kd", "no_kd"]
    assert table.loc[0, "params.alpha"] == 0.5
    assert table.loc[0, "params.layers"] == [1, 2]
    assert table.loc[0, "metrics.ece"] == 0.1
    assert table["metrics.top1"].isna().tolist() == [False, True]
    assert table.loc[1, "costs.steps"] == 100
    assert len(frame.results(str(tmp_path), method="kd", track="vision")) == 1
    with pytest.raises(UsageError, match="no results of the method"):
        frame.results(tmp_path, method="nothing")


def test_other_budgets_stay_apart_and_are_named(tmp_path: Path) -> None:
    for steps in (100, 200):
        put(tmp_path, grid({"kd": [0.5, 0.6], "no_kd": [0.4, 0.4]}, spec=make_spec(limits={"steps": steps})))
    put(tmp_path, grid({"kd": [0.5, 0.6]}, spec=make_spec(limits={"steps": 100}, teacher_seed=1)))
    found = {(board.limits["steps"], board.teacher_seed): board for board in load(tmp_path)}
    assert len(found) == 3
    assert "other budgets exist: 200 steps (2 methods)" in " ".join(found[100, 0].notes)
    assert "other budgets exist: 100 steps (2 methods)" in " ".join(found[200, 0].notes)
    assert "other budgets" not in " ".join(found[100, 1].notes), "another teacher is another task, not another budget"
    assert all("one of 2 definitions" in " ".join(board.notes) for board in found.values())


def test_a_single_budget_has_no_note(tmp_path: Path) -> None:
    put(tmp_path, grid({"kd": [0.5, 0.6]}))
    put(tmp_path, grid({"kd": [0.5, 0.6]}, spec=make_spec(scale="quick", limits={"steps": 7})))
    assert [board.notes for board in load(tmp_path)] == [[], []]


def mixed(results: Path, **selection: str) -> list[Board]:
    return duck.query(results, lambda con: boards.load_boards(con, Selection(**selection), mix_budgets=True))


def test_mixed_budgets_share_a_board_on_which_each_row_names_its_own(tmp_path: Path) -> None:
    scores = {"no_kd": [0.40, 0.41, 0.42], "kd": [0.60, 0.62, 0.61], "teacher": [0.80, 0.80, 0.80]}
    for steps in (100, 200):
        shifted = {
            method: [v + (steps == 200 and method != "teacher") * 0.1 for v in row] for method, row in scores.items()
        }
        put(tmp_path, grid(shifted, spec=make_spec(limits={"steps": steps})))
    apart = {(b.limits["steps"], row.label): row for b in load(tmp_path) for row in b.rows}
    (board,) = mixed(tmp_path)
    assert board.budgets == [{"steps": 100}, {"steps": 200}]
    assert board.limits == {}
    rows = {(row.limits["steps"], row.label): row for row in board.rows}
    assert rows.keys() == apart.keys()
    for key, row in rows.items():
        assert row.gap == apart[key].gap, "gap closed is that of the row's own budget"
        assert (row.values == apart[key].values).all()
    assert rows[200, "kd"].rank == (3, 3), "all rows are ranked together, behind the two teachers"
    assert rows[100, "kd"].rank == (4, 4)
    assert board.spec_digest not in {row.spec_digest for row in board.rows}
    text = render.boards_markdown([board])
    assert "budgets mixed (100 steps; 200 steps)" in text
    assert "| kd | 100 steps |" in text
    assert "| kd | 200 steps |" in text
    assert render.MIXED_RULE in text
    records = boards.records([board])
    assert {(json.loads(r["limits"])["steps"], r["spec_digest"], r["label"]) for r in records} == {
        (row.limits["steps"], row.spec_digest, row.label) for row in board.rows
    }


def test_mixing_joins_nothing_but_budgets(tmp_path: Path) -> None:
    for changes in ({}, {"limits": {"steps": 5, "tokens": 9}}, {"teacher_seed": 1}, {"scale": "quick"}):
        put(tmp_path, grid({"kd": [0.5, 0.6]}, spec=make_spec(**changes)))  # type: ignore[arg-type]
    found = mixed(tmp_path)
    assert sorted((board.scale, board.teacher_seed, len(board.rows)) for board in found) == [
        ("cpu", 0, 2), ("cpu", 1, 1), ("quick", 0, 1),
    ]  # fmt: skip
    (joined,) = (board for board in found if board.budgets)
    assert all("other budgets" not in note for board in found for note in board.notes)
    assert "one of 2 definitions of vision/toy@cpu" in " ".join(joined.notes)


def test_letters_say_exactly_who_is_separated(tmp_path: Path) -> None:
    put(tmp_path, grid(SCORES | {"rkd": [0.905, 0.90, 0.90, 0.89, 0.905]}, cost={"test_examples": 500.0}))  # type: ignore[arg-type]
    (board,) = load(tmp_path)
    letters = {row.label: row.ties for row in board.rows}
    assert letters["teacher"] == "a"
    assert letters["kd"] == letters["rkd"] == "b"
    assert letters["no_kd"] == "c"
    assert letters["shaky"] == letters["broken"] == "", "methods with failed jobs rank behind whatever the tests say"
    assert "methods that share a letter" in " ".join(render.rules(board))


def test_large_boards_and_single_seeds_have_no_letters(tmp_path: Path) -> None:
    scores = {f"m{i:02}": [0.5 + i / 100, 0.51 + i / 100, 0.5 + i / 100] for i in range(boards.LETTERS + 1)}
    put(tmp_path / "large", grid(scores))
    (board,) = load(tmp_path / "large")
    assert all(row.rank is not None and row.ties == "" for row in board.rows)
    assert "ties" not in render.board_table(board)[0]
    put(tmp_path / "one", grid({"kd": [0.5], "no_kd": [0.4]}))
    assert {row.ties for row in load(tmp_path / "one")[0].rows} == {""}


def test_what_jobs_spent_is_kept_by_seed(tmp_path: Path) -> None:
    for seed in range(3):
        put(tmp_path, make_outcome(make_job("kd", seed), 0.5, cost={"flops": 1e9 * (seed + 1)}))
    put(tmp_path, make_outcome(make_job("kd", 3), status="failed", cost={"flops": 9e9}))
    put(tmp_path, make_outcome(make_job("no_kd", 1), 0.5, cost={"aux_steps": 5.0}))
    (board,) = load(tmp_path)
    by_label = {row.label: row for row in board.rows}
    flops, aux = board.meters.index("flops"), board.meters.index("aux_steps")
    assert by_label["kd"].spent[flops].tolist()[:3] == [1e9, 2e9, 3e9]
    assert np.isnan(by_label["kd"].spent[flops, 3]), "what a failed job spent is no cost of a result"
    assert by_label["kd"].costs["flops"] == 2e9
    assert "aux_steps" not in by_label["kd"].costs
    assert by_label["no_kd"].spent[aux, 1] == 5.0
    assert all(row.spent.shape == (len(board.meters), 4) for row in board.rows)


def test_a_board_of_failures_alone(tmp_path: Path) -> None:
    put(tmp_path, grid({"kd": [None, None], "no_kd": [None, None]}))
    (board,) = load(tmp_path)
    assert [(row.n_failed, row.rank, row.costs) for row in board.rows] == [(2, None, {}), (2, None, {})]
    assert render.FAILURE_RULE in render.rules(board)
