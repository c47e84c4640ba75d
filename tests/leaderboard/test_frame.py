"""``kdbench.results``: what leaderboards can be asked for, as rows."""

from __future__ import annotations

from pathlib import Path

import pytest

from kdbench.errors import UsageError
from kdbench.leaderboard import frame
from kdbench.store import duck, membership
from kdbench.store.exchange import take_over
from tests.helpers.outcomes import grid, make_job, make_outcome, make_spec, put
from tests.helpers.reference import come_with, ship


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("results")
    kd = put(folder, grid({"kd": [0.5, None], "no_kd": [0.4, 0.3]}))
    put(folder, make_outcome(make_job("sft", task="llm/toy", spec=make_spec("llm/toy")), 0.7, extra={"ece": 0.1}))
    put(folder, make_outcome(make_job("kd", task="llm/toy", spec=make_spec("llm/toy")), status="oom"))
    membership.add(folder, "mine", [outcome.id for outcome in kd[:2]], None)
    duck.sync(folder)
    return folder


def test_selections_are_those_of_the_leaderboards(results: Path, tmp_path: Path) -> None:
    assert len(frame.results(results)) == 6
    assert len(frame.results(results, track="llm")) == 2
    assert len(frame.results(results, task="vision/toy@cpu", method="kd")) == 2
    assert len(frame.results(results, suite="mine")) == 2
    file = tmp_path / "anything.yaml"
    file.write_text("name: mine\n")
    assert len(frame.results(results, suite=file)) == len(frame.results(str(results), suite=str(file))) == 2
    with pytest.raises(UsageError, match="did you mean 'mine'"):
        frame.results(results, suite="mime")


def test_a_metric_keeps_the_failures_of_its_tasks(results: Path) -> None:
    table = frame.results(results, metric="ece")
    assert [name for name in table if name.startswith("metrics.")] == ["metrics.ece"]
    assert table["label"].tolist() == ["kd", "sft"]
    assert table["status"].tolist() == ["oom", "ok"]
    assert len(frame.results(results, metric="top1")) == 6
    assert len(frame.results(results, metric="top1", track="vision", method="kd")) == 2
    with pytest.raises(UsageError, match="metric 'ece'"):
        frame.results(results, metric="ece", track="vision")
    with pytest.raises(UsageError, match="did you mean 'top1'"):
        frame.results(results, metric="top2")


def test_imported_results_are_in_the_frame(results: Path, tmp_path: Path) -> None:
    put(tmp_path, make_outcome(make_job("mine", 5), 0.9))
    take_over(results, tmp_path)
    table = frame.results(tmp_path)
    assert len(table) == 7
    same = frame.results(results)
    mine = table[table["label"] != "mine"].reset_index(drop=True)
    assert mine["metrics.top1"].equals(same["metrics.top1"])
    assert frame.results(tmp_path, suite="mine")["id"].tolist() == frame.results(results, suite="mine")["id"].tolist()


def test_reference_results_are_in_the_frame(results: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = come_with(monkeypatch, tmp_path / "reference")
    monkeypatch.setenv("KDBENCH_CACHE", str(tmp_path / "cache"))
    ship(folder, "vision", grid({"kd": [0.5, None], "no_kd": [0.4, 0.3]}))
    table = frame.results(reference=True, method="kd")
    assert table["metrics.top1"].tolist()[:1] == [0.5]
    assert table["git_commit"].tolist() == ["abc123"] * 2
    with pytest.raises(UsageError, match="leave one of them out"):
        frame.results(results, reference=True)
