"""The views agree with what computes the same elsewhere, and say what their columns' comments say."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pytest
from scipy.special import stdtr

from kdbench.leaderboard import statistics
from kdbench.leaderboard.boards import load_boards
from kdbench.leaderboard.selection import Selection
from kdbench.registry import discover
from kdbench.store import duck, ingest, schema, spool
from tests.helpers.outcomes import grid, make_job, make_outcome, make_spec, put


def rows(results: Path, query: str) -> list[tuple[Any, ...]]:
    return duck.query(results, lambda con: con.execute(query).fetchall())


def named(results: Path, query: str) -> list[dict[str, Any]]:
    def work(con: duckdb.DuckDBPyConnection) -> list[dict[str, Any]]:
        found = con.execute(query)
        names = [item[0] for item in found.description or ()]
        return [dict(zip(names, row, strict=True)) for row in found.fetchall()]

    return duck.query(results, work)


def test_every_column_says_what_it_is_and_is_named_once() -> None:
    for view in schema.VIEWS:
        names = [column.name for column in view.columns]
        assert len(set(names)) == len(names) > 1
        assert view.doc
        assert all(len(column.doc) > 2 for column in view.columns)


# --- Student's distribution -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def empty() -> duckdb.DuckDBPyConnection:
    con = duckdb.connect()
    ingest.create(con)
    return con


def test_p_values_are_students(empty: duckdb.DuckDBPyConnection) -> None:
    t = [0.0, 0.01, 0.1, 0.7, 1.0, 2.0, 2.7764451051977987, 5.0, 20.0, 1e3, 1e8]
    for most, tolerance in ((100, 1e-12), (1000, 1e-9)):
        for df in (1, 2, 3, 4, 5, 6, 9, 10, 49, 100) if most == 100 else (101, 250, 999, 1000):
            found = empty.execute(f"SELECT student_p(x, {df}), student_p(-x, {df}) FROM unnest(?) AS u(x)", [t])
            expected = 2 * stdtr(df, -np.array(t))
            for (above, below), p in zip(found.fetchall(), expected, strict=True):
                assert above == below == pytest.approx(p, abs=tolerance)
                assert 0 <= above <= 1 + tolerance


def test_p_values_where_there_is_no_test(empty: duckdb.DuckDBPyConnection) -> None:
    query = "SELECT student_p('inf'::DOUBLE, 3), student_p('nan'::DOUBLE, 3), student_p(NULL, 3), student_p(1.0, 0)"
    assert empty.execute(query).fetchone() == (0.0, None, None, None)


def test_quantiles_are_students(empty: duckdb.DuckDBPyConnection) -> None:
    found = dict(empty.execute("SELECT df, t FROM store.student").fetchall())
    assert sorted(found) == list(range(1, ingest.MOST_FREEDOM + 1))
    assert found[4] == pytest.approx(statistics.t_quantile(5))
    assert found[999] == pytest.approx(statistics.t_quantile(1000))


def test_means_over_more_seeds_than_there_are_quantiles_have_an_interval(tmp_path: Path) -> None:
    spec = make_spec(metrics=())
    put(tmp_path, [make_outcome(make_job("kd", seed, spec=spec), seed % 2) for seed in range(ingest.MOST_FREEDOM + 3)])
    ((low, high, mean),) = rows(tmp_path, "SELECT low, high, mean FROM leaderboard WHERE headline")
    assert low < mean < high


# --- pairs ------------------------------------------------------------------------------------------------------------

BOARDS: dict[str, Mapping[str, Sequence[float | None]]] = {
    "separated": {"a": [0.9, 0.91, 0.92], "b": [0.5, 0.52, 0.51], "c": [0.7, 0.1, 0.4]},
    "failures": {"a": [0.9, None, 0.92, 0.9], "b": [0.5, 0.52, 0.51, 0.5], "c": [0.4, None, None, 0.41]},
    "more failures": {"a": [0.9, None, 0.8], "b": [0.5, 0.5, None], "c": [None, 0.1, 0.2], "d": [None, None, None]},
    "equal differences": {"a": [0.5, 0.6, 0.7], "b": [0.25, 0.35, 0.45], "c": [0.5, 0.6, 0.7]},
    "two equal differences": {"a": [0.5, 0.75], "b": [0.25, 0.5]},
    "one seed": {"a": [0.5], "b": [0.6]},
    "alone": {"a": [0.5, 0.6]},
    "many": {f"m{i}": list(np.random.default_rng(i).normal(0.4 + i / 40, 0.03, 5).round(3)) for i in range(12)},
}


@pytest.mark.parametrize("examples", [0, 50])
@pytest.mark.parametrize("direction", ["max", "min"])
@pytest.mark.parametrize("name", BOARDS)
def test_pairs_are_those_of_the_statistics(tmp_path: Path, name: str, direction: str, examples: int) -> None:
    spec = make_spec(direction=direction, metrics=())
    put(tmp_path, grid(BOARDS[name], spec=spec, cost={"test_examples": examples}))
    (board,) = duck.query(tmp_path, load_boards)
    assert board.resolution == (0.02 if examples else 0)
    pairs = named(tmp_path, "SELECT * FROM pairwise WHERE metric = 'top1'")
    found = {(pair["label"], pair["other_label"]): pair for pair in pairs}
    assert len(found) == len(pairs)
    common = {
        (a.label, b.label)
        for a in board.rows
        for b in board.rows
        if a is not b and np.isfinite(a.values - b.values).any()
    }
    assert found.keys() == common
    by_label = {row.label: row for row in board.rows}
    for (a, b), pair in found.items():
        expected = statistics.paired_difference(by_label[a].values, by_label[b].values, board.resolution)
        assert (pair["n"], pair["difference"]) == (expected.n, pytest.approx(expected.mean))
        assert (pair["low"], pair["high"]) == (approx(expected.low), approx(expected.high))
        assert pair["p"] == approx(expected.p, 1e-10)
        assert (pair["complete"], pair["other_complete"]) == (by_label[a].complete, by_label[b].complete)
        assert (pair["direction"], pair["headline"]) == (direction, True)
    for complete in (True, False):
        group = [row for row in board.rows if row.complete is complete and np.isfinite(row.values).any()]
        if group:
            check_family(group, found, board)


def approx(value: float | None, tolerance: float = 1e-9) -> Any:
    return None if value is None else pytest.approx(value, abs=tolerance)


def check_family(group: list[Any], found: dict[tuple[str, str], dict[str, Any]], board: Any) -> None:
    """Holm's correction and who is better, within the methods that failed somewhere, or nowhere."""
    values = np.stack([row.values for row in group])
    pairs = statistics.separations(values, board.direction, board.resolution)
    for i, row in enumerate(group):
        family = [found.get((row.label, other.label)) for other in group if other is not row]
        p = np.array([np.nan if pair is None or pair["p"] is None else pair["p"] for pair in family])
        adjusted = statistics.holm(p)
        for pair, value in zip(family, adjusted, strict=True):
            if pair is not None:
                assert pair["p_holm"] == approx(None if math.isnan(value) else value)
        for j, other in enumerate(group):
            pair = found.get((row.label, other.label))
            if pair is not None:
                assert (pair["better"] is True) == bool(pairs.worse[i, j])
                assert (pair["better"] is False) == bool(pairs.better[i, j])


def test_a_method_that_failed_is_not_tested_against_one_that_did_not(tmp_path: Path) -> None:
    put(tmp_path, grid({"a": [0.9, 0.92, None], "b": [0.1, 0.11, 0.12]}))
    (pair,) = named(tmp_path, "SELECT * FROM pairwise WHERE headline AND label = 'a'")
    assert (pair["n"], pair["complete"], pair["other_complete"]) == (2, False, True)
    assert pair["p"] is not None
    assert (pair["p_holm"], pair["better"]) == (None, None)


def test_pairs_are_of_the_newest_versions_and_of_one_task_definition(tmp_path: Path) -> None:
    put(tmp_path, [make_outcome(make_job("kd", s, digest="old"), 0.1, minutes=1) for s in range(3)])
    put(tmp_path, [make_outcome(make_job("kd", s, digest="new"), 0.9 + s / 100, minutes=9) for s in range(3)])
    put(tmp_path, grid({"no_kd": [0.5, 0.52, 0.51]}))
    put(tmp_path, grid({"far": [0.5, 0.52, 0.51]}, spec=make_spec(limits={"steps": 7})))
    found = rows(tmp_path, "SELECT label, other_label, n, round(difference, 2) FROM pairwise WHERE headline ORDER BY 1")
    assert found == [("kd", "no_kd", 3, 0.4), ("no_kd", "kd", 3, -0.4)]


def test_a_methods_own_metric_is_compared_without_a_verdict(tmp_path: Path) -> None:
    for method, shift in (("a", 0.0), ("b", 5.0)):
        put(tmp_path, [make_outcome(make_job(method, s), 0.5, extra={"own": shift + s % 2}) for s in range(3)])
    (pair,) = named(tmp_path, "SELECT * FROM pairwise WHERE metric = 'own' AND label = 'a'")
    assert (pair["difference"], pair["p"], pair["direction"], pair["better"]) == (-5.0, 0.0, None, None)


def test_what_a_task_refuses_has_no_verdicts(tmp_path: Path) -> None:
    put(tmp_path, grid({"a": [0.9, 0.91, 0.92], "b": [0.1, 0.11, 0.14]}, gate=["the gap is closed"]))
    assert set(rows(tmp_path, "SELECT better, p_holm < 0.05 FROM pairwise WHERE headline")) == {(None, True)}
    for view in ("leaderboard", "tasks"):
        assert {json.loads(text)[0] for (text,) in rows(tmp_path, f"SELECT refused FROM {view}")} == {
            "the gap is closed"
        }
    (outcome,) = put(tmp_path, make_outcome(make_job("c", 0), 0.5, minutes=1e4))
    assert rows(tmp_path, "SELECT DISTINCT refused FROM tasks") == [(None,)]
    assert outcome.id


# --- which jobs count -------------------------------------------------------------------------------------------------


def test_current_follows_the_newest_version_whatever_happens(tmp_path: Path) -> None:
    def current() -> set[str]:
        return {digest for (digest,) in rows(tmp_path, "SELECT DISTINCT method_digest FROM jobs WHERE current")}

    (old,) = put(tmp_path, make_outcome(make_job("kd", 0, digest="old"), 0.1, minutes=1))
    put(tmp_path, make_outcome(make_job("kd", 1, digest="old"), 0.1, minutes=1))
    assert current() == {"old"}
    (new,) = put(tmp_path, make_outcome(make_job("kd", 0, digest="new"), 0.2, minutes=5))
    assert current() == {"new"}
    put(tmp_path, old.model_copy(update={"finished_at": new.finished_at.replace(year=2027)}))
    assert current() == {"old"}
    for id in [old.id, make_job("kd", 1, digest="old").id]:
        shutil.rmtree(spool.job_folder(tmp_path, id))
    assert current() == {"new"}
    assert rows(tmp_path, "SELECT count(*) FROM jobs WHERE current IS NULL") == [(0,)]


# --- what is known of methods -----------------------------------------------------------------------------------------


def test_methods_join_cards_with_outcomes(tmp_path: Path) -> None:
    registry = discover()
    method = next(method for key, method in registry.methods.items() if key.startswith("vision/"))
    put(tmp_path, grid({method.slug: [0.5, None, 0.6], "of_no_plugin": [0.1, 0.2]}))
    put(tmp_path, make_outcome(make_job("of_no_plugin", 7), status="interrupted"))
    found = {row["method"]: row for row in named(tmp_path, "SELECT * FROM methods")}
    assert found.keys() == registry.methods.keys() | {"vision/of_no_plugin"}
    ours = found[method.key]
    assert (ours["installed"], ours["title"], ours["slug"]) == (True, method.card.title, method.slug)
    assert (ours["jobs"], ours["jobs_ok"], ours["jobs_failed"], ours["tasks"]) == (3, 2, 1, 1)
    assert json.loads(ours["tags"]) == list(method.card.tags)
    foreign = found["vision/of_no_plugin"]
    assert (foreign["installed"], foreign["kind"], foreign["title"], foreign["tags"]) == (False, None, None, None)
    assert (foreign["jobs"], foreign["jobs_ok"], foreign["jobs_failed"]) == (3, 2, 0)
    idle = next(row for key, row in found.items() if key not in (method.key, "vision/of_no_plugin"))
    assert (idle["jobs"], idle["tasks"], idle["last_finished_at"]) == (0, 0, None)
    assert {row["kind"] for row in found.values()} == {"paper", "baseline", None}


def test_claims_are_those_of_the_claims_module(tmp_path: Path) -> None:
    from kdbench.leaderboard.claims import records

    registry = discover()
    put(tmp_path, grid({"kd": [0.5, 0.6]}))
    found = named(tmp_path, "SELECT * FROM claims")
    expected = duck.query(tmp_path, lambda con: records(con, registry))
    assert found == expected
    assert len(found) > 10
    assert {row["verdict"] for row in found} == {"undecided"}


def test_claims_that_cannot_be_judged_are_a_problem_and_hide_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from kdbench.errors import Problem, UsageError
    from kdbench.leaderboard import claims

    def broken(*args: object) -> None:
        raise UsageError("planted", place="tasks.yaml")

    put(tmp_path, grid({"kd": [0.5, 0.6]}))
    with monkeypatch.context() as patch:
        patch.setattr(claims, "records", broken)
        for _ in range(2):
            problems: list[Problem] = []
            query = (
                "SELECT (SELECT count(*) FROM jobs), (SELECT count(*) FROM claims), count(installed) > 9 FROM methods"
            )
            assert duck.query(tmp_path, lambda con: con.execute(query).fetchall(), problems) == [(2, 0, True)]  # noqa: B023
            assert [problem.message for problem in problems] == ["planted"]
    assert rows(tmp_path, "SELECT count(*) > 9 FROM claims") == [(True,)]


# --- queries for one task read nothing else ---------------------------------------------------------------------------


def test_a_boards_selection_and_its_views_agree(tmp_path: Path) -> None:
    for task in ("vision/one", "vision/two"):
        put(tmp_path, grid({"a": [0.5, 0.6], "b": [0.1, 0.3]}, task=task))
    (board,) = duck.query(tmp_path, lambda con: load_boards(con, Selection(task="two")))
    found = rows(tmp_path, "SELECT label, mean FROM leaderboard WHERE task = 'vision/two' AND headline")
    assert dict(found) == {row.label: row.score.mean for row in board.rows if row.score}
    assert rows(tmp_path, "SELECT count(*) FROM pairwise WHERE task = 'vision/two' AND headline") == [(2,)]
