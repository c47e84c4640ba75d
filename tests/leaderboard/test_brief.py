"""A method in brief: its best row of each board, and what its claims come to."""

from __future__ import annotations

import pytest

from kdbench.leaderboard.brief import Brief, brief
from kdbench.registry import Registry, discover
from kdbench.store import duck
from tests.helpers.outcomes import grid, make_job, make_outcome, make_spec, put


@pytest.fixture(scope="module")
def registry() -> Registry:
    return discover()


def of(results, registry: Registry, key: str) -> Brief:
    return duck.query(results, lambda con: brief(con, registry, key))


def test_the_best_of_several_settings_is_shown_with_what_it_is(tmp_path, registry):
    put(tmp_path, grid({"kd": [0.5, 0.6, 0.7], "no_kd": [0.2, 0.3, 0.4], "teacher": [0.9, 0.9, 0.9]}))
    for seed, score in enumerate([0.7, 0.8, 0.9]):
        job = make_job("kd", seed, params={"temperature": 2.0}, label="kd(temperature=2)", spec=make_spec())
        put(tmp_path, make_outcome(job, score))
    (best,) = of(tmp_path, registry, "vision/kd").best
    record = best.record()
    assert (record["task"], record["label"], record["n"]) == ("vision/toy", "kd(temperature=2)", 3)
    assert record["mean"] == pytest.approx(0.8)
    assert record["among"] == 4
    assert record["gap_closed"] == pytest.approx((0.8 - 0.3) / (0.9 - 0.3))


def test_less_is_better_where_the_task_says_so(tmp_path, registry):
    spec = make_spec(headline="loss", direction="min")
    put(tmp_path, grid({"kd": [0.5, 0.6]}, spec=spec))
    put(tmp_path, [make_outcome(make_job("kd", s, params={"t": 1}, label="kd(t=1)", spec=spec), 0.9) for s in (0, 1)])
    (best,) = of(tmp_path, registry, "vision/kd").best
    assert best.row.label == "kd"


def test_there_is_a_row_for_each_task_and_scale_and_none_of_others(tmp_path, registry):
    put(tmp_path, grid({"kd": [0.5], "dist": [0.6]}))
    put(tmp_path, grid({"kd": [0.5]}, task="vision/other", spec=make_spec("vision/other", scale="quick")))
    titles = [best.board.title for best in of(tmp_path, registry, "vision/kd").best]
    assert titles == ["vision/other@quick", "vision/toy@cpu"]
    assert of(tmp_path, registry, "vision/pld").best == []


def test_failures_are_shown(tmp_path, registry):
    put(tmp_path, grid({"kd": [None, None], "dist": [0.5, 0.6]}))
    found = of(tmp_path, registry, "vision/kd")
    _, (row,), _ = found.table()
    assert "no result" in row
    assert found.best[0].record()["failed"] == 2
    assert found.best[0].record()["mean"] is None


def test_claims_of_which_nothing_ran_are_no_status(tmp_path, registry):
    put(tmp_path, grid({"kd": [0.5]}))
    found = of(tmp_path, registry, "vision/pld")
    assert found.claims() == ""
    assert {conclusion.verdict for conclusion in found.conclusions} == {"undecided"}


def test_claims_that_were_checked_have_their_verdict_and_its_parts(tmp_path, registry):
    spec = registry.task("llm/instruct", "quick").identity()
    scores = {"taid": [0.9, 0.91, 0.92], "kd_fkl": [0.1, 0.11, 0.12], "kd_rkl": [0.95, 0.96, 0.97]}
    for slug, values in scores.items():
        params = registry.method(slug, "llm").canonical({})
        put(
            tmp_path,
            [
                make_outcome(make_job(slug, seed, task="llm/instruct", spec=spec, params=params), value)
                for seed, value in enumerate(values)
            ],
        )
    text = of(tmp_path, registry, "llm/taid").claims()
    assert text == "not reproduced at scale quick (1 reproduced, 1 not reproduced, 1 undecided)"
