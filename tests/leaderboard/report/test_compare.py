"""Data of the page that compares methods: complete, small, and the seeds' values."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from kdbench.leaderboard.board import Board, Row
from kdbench.leaderboard.boards import load_boards
from kdbench.leaderboard.report import compare, names
from kdbench.store import duck
from tests.helpers.outcomes import grid, make_spec, put
from tests.helpers.site import NAMES

SCRIPT = re.compile(r'\(\(window\.kdbench \?\?= \{\}\)\.data \?\?= \{\}\)\["([a-z0-9-]+)"\]=(.*);\n')


def read(folder: Path) -> dict[str, Any]:
    """What the scripts of a site assign, by name."""
    found = {}
    for path in (folder / compare.FOLDER).iterdir():
        text = path.read_text("ascii")
        match = SCRIPT.fullmatch(text)
        assert match is not None, text[:200]
        assert match[1] == path.stem
        found[match[1]] = json.loads(match[2])
    return found


def rows_of(data: dict[str, Any]) -> dict[str, list[list[Any]]]:
    """``[task, values, failed]`` by name of the method."""
    return {name: data[script] for name, _, script in data["compare"]["methods"]}


def test_every_value_of_every_method_is_there(tmp_path: Path) -> None:
    results, out = tmp_path / "results", tmp_path / "site"
    put(results, grid({"kd": [0.1, 1 / 3, 0.3], "no_kd": [0.2, None, 0.4]}))
    put(results, grid({"kd": [1.5, 2.5]}, task="vision/other", spec=make_spec("vision/other", direction="min")))
    boards = duck.query(results, load_boards)
    written = compare.write(boards, out)
    assert sorted(written) == sorted(path.relative_to(out) for path in out.rglob("*.js"))
    data = read(out)
    tasks = {task["title"]: (number, task) for number, task in enumerate(data["compare"]["tasks"])}
    toy, other = tasks["vision/toy@cpu"], tasks["vision/other@cpu"]
    assert toy[1]["page"] == names.task_pages(boards)[next(b for b in boards if b.task == "vision/toy").spec_digest]
    assert (toy[1]["direction"], other[1]["direction"]) == ("max", "min")
    rows = rows_of(data)
    assert set(rows) == {"vision/kd", "vision/no_kd"}
    assert sorted(rows["vision/kd"]) == sorted([[toy[0], [0.1, 1 / 3, 0.3], 0], [other[0], [1.5, 2.5], 0]])
    assert rows["vision/no_kd"] == [[toy[0], [0.2, None, 0.4], 1]]
    pages = {name: page for name, page, _ in data["compare"]["methods"]}
    assert pages["vision/kd"] == names.method_page("vision/kd")


def test_quantiles_are_those_of_student(tmp_path: Path) -> None:
    put(tmp_path, grid({"kd": [0.1, 0.2, 0.3, 0.4, 0.5, 0.6]}))
    quantiles = compare.data(duck.query(tmp_path, load_boards))["compare"]["quantiles"]
    assert quantiles[:2] == [None, None]
    assert quantiles[2:] == pytest.approx([stats.t.ppf(0.975, n - 1) for n in range(2, 7)])


def test_hostile_names_stay_inside_of_strings(tmp_path: Path) -> None:
    results, out = tmp_path / "results", tmp_path / "site"
    put(results, grid({name: [0.1, 0.2] for name in NAMES.values()}))
    compare.write(duck.query(results, load_boards), out)
    data = read(out)
    assert len(rows_of(data)) == len(NAMES)
    assert all(re.fullmatch(r"compare(-\d+)?\.js", path.name) for path in (out / compare.FOLDER).iterdir())
    assert not [path for path in tmp_path.iterdir() if path not in (results, out)]


def board_of(rows: list[Row], number: int = 0, **changes: Any) -> Board:
    about: dict[str, Any] = {
        "task": f"vision/task-{number}",
        "scale": "cpu",
        "spec_digest": f"digest{number}",
        "metric": "top1",
        "headline": True,
        "direction": "max",
        "unit": "%",
        "bounds": (0, 1),
        "limits": {"steps": 100.0},
        "teacher_seed": 0,
        "floor": "no_kd",
        "ceiling": "teacher",
        "seeds": list(range(5)),
        "rows": rows,
    }
    return Board(**(about | changes))


def row_of(method: str, label: str, values: np.ndarray) -> Row:
    return Row(method, label, {}, None, values, 0, {}, {}, True)


def test_rows_and_tasks_with_equal_names_are_told_apart() -> None:
    values = np.full(5, 0.5)
    rows = [
        row_of("vision/kd", "kd", values),
        row_of("vision/kd", "kd", values),
        row_of("vision/kd", "other", values),
        row_of("vision/other", "other", values),
        row_of("vision/kd", "kd(t=2)", values),
    ]
    found = compare.data([board_of(rows), board_of(rows, spec_digest="another", limits={"steps": 200.0})])
    about = found["compare"]
    methods = [name for name, _, _ in about["methods"]]
    assert len(set(methods)) == len(methods) == 5
    assert {"vision/other", "vision/other [kd]", "vision/kd(t=2)"} <= set(methods)
    titles = [task["title"] for task in about["tasks"]]
    assert len(set(titles)) == 2
    assert "100 steps" in titles[0]
    assert "200 steps" in titles[1]


def test_no_file_is_large() -> None:
    rng = np.random.default_rng(0)
    boards = [
        board_of([row_of(f"vision/method_{m:03d}", f"method_{m:03d}", rng.random(5)) for m in range(226)], task)
        for task in range(40)
    ]
    sizes = [len(compare.script(name, value)) for name, value in compare.data(boards).items()]
    assert len(sizes) == 227
    assert max(sizes) < 50_000


def test_no_results_make_an_index_alone() -> None:
    assert list(compare.data([])) == ["compare"]
