"""Charts: what they draw of a board, compiled by the library that the pages use."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdbench.leaderboard import fronts
from kdbench.leaderboard.board import Board
from kdbench.leaderboard.boards import load_boards
from kdbench.leaderboard.report import charts, names
from kdbench.leaderboard.statistics import Estimate
from kdbench.store import duck
from tests.helpers.outcomes import grid, make_job, make_outcome, make_spec, put
from tests.helpers.site import METRICS, NAMES

vl_convert = pytest.importorskip("vl_convert")

SCORES = {"cheap": [0.50, 0.52, 0.51], "good": [0.80, 0.82, 0.81], "dominated": [0.40, 0.41, 0.42]}
FLOPS = {"cheap": 1e3, "good": 1e6, "dominated": 1e7}


def board_of(results: Path) -> Board:
    (board,) = duck.query(results, load_boards)
    return board


@pytest.fixture(scope="module")
def board(tmp_path_factory: pytest.TempPathFactory) -> Board:
    """Three methods and one with a failed job, with costs over four decades, from zero, and within one decade."""
    results = tmp_path_factory.mktemp("results")
    for method, scores in {**SCORES, "broken": [0.9, None, 0.9]}.items():
        for seed, score in enumerate(scores):
            cost = {
                "flops": FLOPS.get(method, 1e4),
                "teacher_queries": 0.0 if method == "cheap" else FLOPS.get(method, 1e4),
                "train_seconds": 2.0 + seed + (method == "good"),
            }
            status = "ok" if score is not None else "failed"
            put(results, make_outcome(make_job(method, seed), score, status=status, cost=cost))
    return board_of(results)


def drawing_of(board: Board, costs: Iterable[str]) -> charts.Drawing:
    found = {cost: fronts.front(board, cost) for cost in costs}
    return charts.quality_cost(board, found, lambda row: f"../{names.method_page(row.method)}")


def svg(spec: Mapping[str, Any], rows: list[dict[str, Any]]) -> ElementTree.Element:
    """What the pages' library draws."""
    datasets = {**spec.get("datasets", {}), charts.ROWS: rows}
    return ElementTree.fromstring(vl_convert.vegalite_to_svg({**spec, "width": 600, "datasets": datasets}))


def marks(drawn: ElementTree.Element, kind: str) -> list[ElementTree.Element]:
    """Paths and lines of the marks of a kind: ``symbol``, ``rule``, ``line``, ``area``, ``text``."""
    return [
        item
        for group in drawn.iter("{http://www.w3.org/2000/svg}g")
        if f"mark-{kind} role-mark" in group.get("class", "")
        for item in group.iter()
        if item.tag.endswith(("}path", "}line", "}text"))
    ]


def test_a_point_for_each_method_with_its_score_and_page(board: Board) -> None:
    drawing = drawing_of(board, ["flops"])
    rows = {row["name"]: row for row in drawing.rows}
    assert set(rows) == {"cheap", "good", "dominated", "broken"}
    good = next(row for row in board.rows if row.label == "good")
    assert good.score is not None
    assert rows["good"]["y"] == pytest.approx(good.score.mean, rel=1e-5)
    assert (rows["good"]["low"], rows["good"]["high"]) == pytest.approx((good.score.low, good.score.high), rel=1e-5)
    assert rows["good"]["href"] == "../methods/vision.good.html"
    assert rows["good"]["x"] == [1e6]
    assert rows["broken"]["failed"] == 1
    assert rows["good"]["failed"] == 0
    drawn = svg(drawing.specs["flops"], drawing.rows)
    assert len(marks(drawn, "symbol")) == 4
    assert len(marks(drawn, "rule")) == 4
    links = [link.get("{http://www.w3.org/1999/xlink}href", "") for link in drawn.iter() if link.tag.endswith("}a")]
    assert sorted(link.split("methods/")[-1] for link in links) == sorted(
        f"vision.{row.label}.html" for row in board.rows
    )


def test_the_front_is_a_line_through_those_that_are_on_it(board: Board) -> None:
    drawing = drawing_of(board, ["flops"])
    on = {row["name"] for row in drawing.rows if row["front"][0]}
    assert on == {"cheap", "good"}  # the one with a failed job takes no part, however good
    assert all(row["share"][0] == "takes no part" for row in drawing.rows if row["name"] == "broken")
    drawn = svg(drawing.specs["flops"], drawing.rows)
    (line,) = marks(drawn, "line")
    assert line.get("d", "").count("L") + line.get("d", "").count("H") > 0
    assert {text.text for text in marks(drawn, "text")} == on


def test_each_axis_of_costs_fits_its_amounts(board: Board) -> None:
    drawing = drawing_of(board, ["flops", "teacher_queries", "train_seconds"])
    kinds = {cost: spec["layer"][0]["encoding"]["x"]["scale"].get("type") for cost, spec in drawing.specs.items()}
    assert kinds == {"flops": "log", "teacher_queries": "symlog", "train_seconds": None}
    for number, (cost, spec) in enumerate(drawing.specs.items()):
        params = {param["name"]: param["value"] for param in spec["params"]}
        assert params["cost"] == number
        assert params.get("powers") == {"flops": [1e3, 1e4, 1e5, 1e6, 1e7], "train_seconds": None}.get(
            cost, [0.0, 1e4, 1e5, 1e6, 1e7]
        )
        drawn = ElementTree.tostring(svg(spec, drawing.rows), encoding="unicode")
        assert "NaN" not in drawn
        assert not set(re.findall(r'"{[a-z]+}"', json.dumps(spec)))  # every mark was replaced


def test_costs_worth_an_axis_are_those_in_which_methods_differ(board: Board) -> None:
    found = charts.costs(board)
    assert set(found) >= {"flops", "teacher_queries", "train_seconds"}
    assert "steps" not in found  # the same for all: that is the budget


def test_specifications_hold_no_data_and_are_not_shared(board: Board) -> None:
    first, second = drawing_of(board, ["flops"]).specs["flops"], drawing_of(board, ["flops"]).specs["flops"]
    assert first == second
    first["layer"][0]["encoding"]["x"]["title"] = "changed"
    assert first != second
    assert len(json.dumps(second)) < 5000
    assert "values" not in json.dumps(second["data"])


def test_a_front_of_another_board_is_refused(board: Board) -> None:
    front = fronts.front(board, "flops")
    shorter = type(front)(front.on[1:], front.share[1:])
    with pytest.raises(ValueError, match="about 3 rows, the board has 4"):
        charts.quality_cost(board, {"flops": shorter}, lambda row: "")


def test_intervals_draw_the_rows_of_the_scatter(board: Board) -> None:
    drawing = drawing_of(board, ["flops"])
    spec = charts.intervals(board)
    drawn = svg(spec, drawing.rows)
    assert len(marks(drawn, "symbol")) == len(marks(drawn, "rule")) == len(drawing.rows)
    text = ElementTree.tostring(drawn, encoding="unicode")
    assert [name for name in (row["name"] for row in drawing.rows) if f">{name}<" not in text] == []
    hollow = [point for point in marks(drawn, "symbol") if point.get("fill-opacity") == "0"]
    assert len(hollow) == 1


def test_hostile_names_are_texts(tmp_path: Path) -> None:
    metric = METRICS[5]
    spec = make_spec(headline=metric, metrics=())
    for number, name in enumerate(NAMES.values()):
        for seed in range(2):
            job = make_job(name, seed, spec=spec)
            put(
                tmp_path, make_outcome(job, 0.1 + 0.01 * number + 0.001 * seed, cost={name: 1.0 + number, "flops": 5.0})
            )
    board = board_of(tmp_path)
    costs = [name for name in NAMES.values() if name in charts.costs(board)] + ["flops"]
    drawing = drawing_of(board, costs[:3] + ["flops"])
    assert len(drawing.rows) == len(NAMES)
    assert len({row["name"] for row in drawing.rows}) == len(NAMES)
    assert all(row["name"].isprintable() for row in drawing.rows)
    for chart in (*drawing.specs.values(), charts.intervals(board)):
        drawn = svg(chart, drawing.rows)  # parsed as XML: nothing ended an element
        assert len(marks(drawn, "symbol")) > 0
        assert not [item for item in drawn.iter() if item.tag.endswith(("}script", "}image", "}foreignObject"))]
        expressions = [param["expr"] for param in chart.get("params", ()) if "expr" in param]
        expressions += [step.get("filter", "") + step.get("calculate", "") for step in _transforms(chart)]
        assert not [text for text in expressions if "alert" in text]


def _transforms(spec: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return [step for layer in (spec, *spec.get("layer", ())) for step in layer.get("transform", ())]


def test_a_board_without_direction_or_with_one_seed_has_no_front_and_no_bars(tmp_path: Path) -> None:
    put(tmp_path, grid({"a": [0.5], "b": [0.6]}, extra={"own": 3.0}))
    (board,) = duck.query(tmp_path, lambda con: load_boards(con, metric="own"))
    drawing = drawing_of(board, ["flops"])
    assert board.direction is None
    assert all("low" not in row for row in drawing.rows)
    assert "on the front" not in json.dumps(drawing.specs)
    drawn = svg(drawing.specs["flops"], drawing.rows)
    assert len(marks(drawn, "symbol")) == 2
    assert marks(drawn, "line") == []


def test_gap_by_task_marks_floor_and_ceiling() -> None:
    entries = [
        charts.GapEntry("vision/a@cpu", "../tasks/a.html", Estimate(0.5, 0.4, 0.6, 5)),
        charts.GapEntry("vision/b@cpu", "../tasks/b.html", Estimate(-0.25, None, None, 1)),
        charts.GapEntry("vision/c@cpu", "../tasks/c.html", None),
        charts.GapEntry("vision/d@cpu", "../tasks/d.html", Estimate(math.nan, None, None, 1)),
    ]
    drawing = charts.gap_by_task(entries)
    assert [(row["name"], row["y"]) for row in drawing.rows] == [("vision/a@cpu", 50), ("vision/b@cpu", -25)]
    drawn = svg(drawing.specs["gap"], drawing.rows)
    assert len(marks(drawn, "symbol")) == 2
    assert len(marks(drawn, "rule")) == 2 + 1  # floor, ceiling, and the interval of the one that has it


def frame_of(lines: Mapping[tuple[str, str, str], list[float]]) -> pd.DataFrame:
    """Curves by (task, metric, label), logged every ten steps."""
    parts = []
    for (task, metric, label), values in lines.items():
        value = np.array(values)
        part = pd.DataFrame({"step": 10 * np.arange(len(value)), "value": value, "low": value - 1, "high": value + 1})
        parts.append(part.assign(spec_digest=task, task=f"vision/{task}@cpu", metric=metric, label=label, seeds=3))
    return pd.concat(parts, ignore_index=True)


def test_curves_are_thinned_and_keep_their_ends() -> None:
    values = list(np.linspace(5, 1, 1000))
    curves = charts.curves(frame_of({("t1", "loss", "kd"): values, ("t1", "acc", "kd"): [0.1, math.nan, 0.3]}), 60)
    assert list(curves.rows) == [("t1", "loss"), ("t1", "acc")]
    (loss,) = curves.rows["t1", "loss"]
    assert len(loss["step"]) == len(loss["value"]) == 60
    assert (loss["step"][0], loss["step"][-1]) == (0, 9990)
    assert loss["step"] == sorted(set(loss["step"]))
    assert loss["value"][0] == 5
    (accuracy,) = curves.rows["t1", "acc"]
    assert accuracy["step"] == [0, 20]  # what is not finite is left out
    drawn = svg(curves.spec, [loss])
    assert len(marks(drawn, "line")) == len(marks(drawn, "area")) == 1
    assert len(marks(drawn, "symbol")) == 60
    with pytest.raises(ValueError, match="first and last point"):
        charts.curves(frame_of({("t1", "loss", "kd"): values}), 1)


def test_curves_of_several_labels_are_lines_with_a_legend() -> None:
    curves = charts.curves(frame_of({("t", "loss", "kd"): [3.0, 2.0], ("t", "loss", "kd(t=1)"): [3.0, 1.0]}))
    rows = curves.rows["t", "loss"]
    assert [row["name"] for row in rows] == ["kd", "kd(t=1)"]
    drawn = svg(curves.spec, rows)
    assert len(marks(drawn, "line")) == 2
    assert "kd(t=1)" in ElementTree.tostring(drawn, encoding="unicode")


@given(st.lists(st.floats(min_value=1e-9, max_value=1e15), min_size=1, max_size=20), st.booleans())
def test_ticks_span_the_amounts(amounts: list[float], with_zero: bool) -> None:
    found = charts.log_ticks([0.0, *amounts] if with_zero else amounts)
    wide = max(amounts) > 10 * min(amounts)
    assert (found is not None) == wide
    if found is not None:
        powers = found[1:] if with_zero else found
        assert found == sorted(found)
        assert (found[0] == 0) == with_zero
        assert powers[0] <= min(amounts) * (1 + 1e-9)
        assert len(powers) <= 16
        assert all(power == pytest.approx(10 ** round(math.log10(power))) for power in powers)


@pytest.mark.parametrize("amounts", [[], [0.0], [5.0, 5.0], [-1.0, 100.0], [0.0, 1.0, 9.0]])
def test_amounts_of_one_decade_have_a_linear_axis(amounts: list[float]) -> None:
    assert charts.log_ticks(amounts) is None


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_rounded_keeps_six_digits(value: float) -> None:
    assert charts.rounded(value) == pytest.approx(value, rel=1e-5, abs=0)
    assert len(json.dumps(charts.rounded(value))) < 20
