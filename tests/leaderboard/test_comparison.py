"""Two methods in pairs: over seeds, over examples, and what more seeds would do."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from kdbench.errors import UsageError
from kdbench.leaderboard import comparison
from kdbench.leaderboard.comparison import Comparison
from kdbench.leaderboard.power import power_of_paired_t
from tests.helpers.outcomes import grid, make_job, make_outcome, make_spec, put


def test_compare_over_seeds_and_examples(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for method, rate in (("kd", 0.9), ("no_kd", 0.7)):
        for seed in range(3):
            hits = (rng.random(400) < rate).astype(float)
            job = make_job(method, seed)
            put(tmp_path, make_outcome(job, float(hits.mean())), examples={"top1": hits})
    (item,) = comparison.compare(tmp_path, "kd", "vision/no_kd")
    assert item.seeds is not None
    assert item.examples is not None
    assert item.seeds.n == 3
    assert item.examples.n == 400
    assert item.seeds.mean == pytest.approx(item.examples.mean)
    assert item.examples.low < item.seeds.mean < item.examples.high
    with pytest.raises(UsageError, match="did you mean 'kd'"):
        comparison.compare(tmp_path, "kdd", "no_kd")


def test_compare_without_or_with_damaged_examples(tmp_path: Path) -> None:
    outcomes = put(tmp_path, grid({"kd": [0.5, 0.6], "no_kd": [0.4, 0.5]}))
    (item,) = comparison.compare(tmp_path, "kd", "no_kd")
    assert item.examples is None
    assert "missing" in item.notes[0]
    for outcome in outcomes:
        (tmp_path / "jobs" / outcome.id / "examples.npz").write_bytes(b"PK\x03\x04 not an archive")
    (item,) = comparison.compare(tmp_path, "kd", "no_kd")
    assert "damaged" in item.notes[0]


def one(results: Path, a: str = "kd", b: str = "no_kd") -> Comparison:
    (item,) = comparison.compare(results, a, b)
    return item


def test_seeds_that_separate_need_no_more(tmp_path: Path) -> None:
    put(tmp_path, grid({"kd": [0.90, 0.91, 0.89, 0.90], "no_kd": [0.80, 0.82, 0.79, 0.81]}))
    item = one(tmp_path)
    assert item.separated
    assert item.more == 0
    assert item.outlook == "4 common seeds separate the two"


def test_seeds_that_do_not_separate_say_how_many_would(tmp_path: Path) -> None:
    a, b = np.array([0.90, 0.93, 0.88, 0.91, 0.90]), np.array([0.89, 0.90, 0.90, 0.87, 0.91])
    put(tmp_path, grid({"kd": a.tolist(), "no_kd": b.tolist()}))
    item = one(tmp_path)
    assert not item.separated
    assert item.needed is not None
    assert item.more == item.needed - 5
    effect = (a - b).mean() / (a - b).std(ddof=1)
    assert power_of_paired_t(effect, item.needed) >= 0.8 > power_of_paired_t(effect, item.needed - 1)
    assert f"about {item.more} more seeds ({item.needed} in all)" in item.outlook
    assert one(tmp_path, "no_kd", "kd").more == item.more, "the order of the two does not matter"


def test_more_seeds_are_told_only_where_they_would_help(tmp_path: Path) -> None:
    put(tmp_path / "equal", grid({"kd": [0.5, 0.6, 0.7], "no_kd": [0.5, 0.6, 0.7]}))
    item = one(tmp_path / "equal")
    assert item.needed is None
    assert item.more is None
    assert "no difference" in item.outlook
    tiny = [0.5, 0.6, 0.7]
    put(tmp_path / "tiny", grid({"kd": [0.7, 0.5, 0.6 + 1e-5], "no_kd": tiny}))
    assert one(tmp_path / "tiny").more is None
    assert "10,000 seeds would not" in one(tmp_path / "tiny").outlook
    put(tmp_path / "single", grid({"kd": [0.7], "no_kd": [0.5]}))
    assert one(tmp_path / "single").more is None
    assert "two at least" in one(tmp_path / "single").outlook
    put(tmp_path / "apart", [make_outcome(make_job("kd", 0), 0.7), make_outcome(make_job("no_kd", 1), 0.5)])
    assert one(tmp_path / "apart").outlook == ""
    assert "no seed in common" in one(tmp_path / "apart").notes


def test_two_equal_differences_need_a_third_seed(tmp_path: Path) -> None:
    put(tmp_path, grid({"kd": [0.75, 0.875], "no_kd": [0.5, 0.625]}))
    item = one(tmp_path)
    assert (item.separated, item.needed, item.more) == (False, 3, 1)
    assert "about 1 more seed (3 in all)" in item.outlook


def test_definitions_of_one_task_are_told_apart(tmp_path: Path) -> None:
    for changes in ({}, {"limits": {"steps": 200}}, {"limits": {"steps": 200}, "teacher_seed": 1}):
        put(tmp_path, grid({"kd": [0.5, 0.6], "no_kd": [0.4, 0.5]}, spec=make_spec(**changes)))  # type: ignore[arg-type]
    put(tmp_path, grid({"kd": [0.5, 0.6], "no_kd": [0.4, 0.5]}, spec=make_spec(scale="quick")))
    titles = [item.title for item in comparison.compare(tmp_path, "kd", "no_kd")]
    assert len(set(titles)) == 4
    assert "vision/toy@quick" in titles
    assert "vision/toy@cpu (100 steps)" in titles
