"""Charts as Vega-Lite specifications, made by altair.

A specification holds no data: it draws the rows of a data set named :data:`ROWS`, which the page holds once for all
specifications that share them. Altair takes a fifth of a second for one, so that each kind is made once, with marks in
the place of its titles and numbers (:func:`_filled`). Colours are CSS: a chart follows the theme of its page and
prints on white. Texts of results occur as values and titles alone, never inside of expressions.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from kdbench.errors import plain
from kdbench.leaderboard.board import Board, Row
from kdbench.leaderboard.fronts import cost_estimates, costs_of
from kdbench.leaderboard.render import estimate, factor_of
from kdbench.leaderboard.statistics import Estimate

if TYPE_CHECKING:
    import altair as alt
    import pandas as pd

    from kdbench.leaderboard.pareto import Front

Spec = dict[str, Any]
"""Vega-Lite, as JSON objects."""
Record = dict[str, Any]
"""A row of a chart's data."""
Kind = Literal["linear", "log", "symlog"]
"""Of an axis of costs."""

ROWS = "rows"
"""Name of the data set that every specification draws."""
POINTS = 60
"""Points of a learning curve at most."""
DECADE = 10.0
"""Costs that differ by more than this factor are drawn on a logarithmic axis."""

_INK = "currentColor"
_ACCENT = "var(--accent, #2b6cb0)"
_MUTED = "var(--muted, #767676)"
ROW = 18
"""Pixels of a line of a chart that has one for each method or task."""
_NAME = 160
"""Pixels of a name beside an axis."""
_SCORE, _COST, _ABOUT = "{score}", "{cost}", "{about}"
_NUMBER, _TICKS, _LEAST = "{number}", "{ticks}", "{least}"
"""Marks of what :func:`_filled` puts into a specification."""


@dataclass(frozen=True)
class Drawing:
    """Specifications by what they show, and the rows that all of them draw."""

    specs: dict[str, Spec]
    rows: list[Record]


@dataclass(frozen=True)
class Curves:
    """Learning curves: rows by task (its digest) and logged metric, ``loss`` first, and what draws any of them."""

    spec: Spec
    rows: dict[tuple[str, str], list[Record]]


@dataclass(frozen=True)
class GapEntry:
    """Gap closed by a method on a task."""

    task: str
    href: str
    """Of the task's page, relative to the page with the chart."""
    gap: Estimate | None


# --- the methods of a board -------------------------------------------------------------------------------------------


def quality_cost(board: Board, fronts: Mapping[str, Front], href: Callable[[Row], str]) -> Drawing:
    """Score against each cost of ``fronts``, one specification by cost: points with 95 % intervals, which lead to the
    methods' pages (``href``), and the Pareto front as a line.

    ``fronts``: of the rows of the board by cost (:func:`kdbench.leaderboard.fronts.front`); none is drawn where the
    metric has no direction. Hollow points have failed jobs. Rows without a score are not drawn, nor those of unknown
    cost. Raises ``ValueError`` where a front is about another number of rows.
    """
    for cost, front in fronts.items():
        if len(front.on) != len(board.rows):
            raise ValueError(f"the front against {cost} is about {len(front.on)} rows, the board has {len(board.rows)}")
    rows = []
    amounts = {cost: cost_estimates(board, cost) for cost in fronts}
    for index, (row, name) in enumerate(zip(board.rows, names(board), strict=True)):
        record = _scored(board, row, name, href(row))
        if record is None:
            continue
        record |= {"x": [], "front": [], "share": []}
        for cost, front in fronts.items():
            amount = amounts[cost][index]
            share = float(front.share[index])
            record["x"].append(rounded(amount.mean) if amount is not None and math.isfinite(amount.mean) else None)
            record["front"].append(int(front.on[index]))
            record["share"].append(f"{share:.0%}" if math.isfinite(share) else "takes no part")
        rows.append(record)
    specs = {}
    for number, cost in enumerate(fronts):
        ticks = log_ticks([row["x"][number] for row in rows if row["x"][number] is not None])
        kind: Kind = "linear" if ticks is None else "log" if ticks[0] else "symlog"
        about = f"{score_title(board)} against {cost_title(cost)}"
        values: Record = {_SCORE: score_title(board), _COST: cost_title(cost), _ABOUT: about}
        values |= {_NUMBER: number, _TICKS: ticks, _LEAST: ticks[1] if kind == "symlog" and ticks else None}
        specs[cost] = _filled(_scatter(kind, board.direction is not None and not board.refused), values)
    return Drawing(specs, rows)


def costs(board: Board) -> list[str]:
    """Costs in which the scored methods of a board differ, in the order of its meters."""
    found = []
    for cost in costs_of(board):
        estimates = cost_estimates(board, cost)
        scored = [amount for amount, row in zip(estimates, board.rows, strict=True) if row.score is not None]
        if len({amount.mean for amount in scored if amount is not None}) > 1:
            found.append(cost)
    return found


def intervals(board: Board) -> Spec:
    """Scores with their 95 % intervals, one method below the other, in the order of the rows that it draws: those of
    :func:`quality_cost` for the same board. Hollow points have failed jobs."""
    values = {_SCORE: score_title(board), _ABOUT: f"{score_title(board)} by method"}
    drawn = sum(row.score is not None and math.isfinite(row.score.mean) for row in board.rows)
    return _filled(_forest(False), values) | {"height": ROW * drawn}


def score_title(board: Board) -> str:
    """Title of the axis of scores: the metric, its unit and which end is better."""
    unit = f" ({board.unit})" if board.unit else ""
    better = {"max": ", more is better", "min": ", less is better", None: ""}[board.direction]
    return plain(f"{board.metric}{unit}{better}")


def cost_title(cost: str) -> str:
    """Title of the axis of a cost."""
    return plain(cost.replace("_", " "))


def names(board: Board) -> list[str]:
    """Labels of the rows, different for each: where several have the same one, the position tells them apart."""
    labels = [plain(row.label) for row in board.rows]
    return [
        label if labels.count(label) == 1 else f"{label} #{position}" for position, label in enumerate(labels, start=1)
    ]


def log_ticks(amounts: Sequence[float]) -> list[float] | None:
    """Powers of ten on a logarithmic axis for these amounts, after a 0 where one of them is 0; None where a linear
    axis will do: for amounts within one decade, and where one is negative."""
    positive = [amount for amount in amounts if amount > 0]
    if not positive or min(amounts) < 0 or max(positive) <= DECADE * min(positive):
        return None
    low, high = math.floor(math.log10(min(positive))), math.ceil(math.log10(max(positive)))
    powers = [10.0**power for power in range(low, high + 1, max(1, round((high - low) / 8)))]
    return [0.0, *powers] if min(amounts) == 0 else powers


@cache
def _scatter(kind: Kind, ranked: bool) -> Spec:
    """``kind``: of the axis of costs. A logarithm has no zero, which is what methods without a teacher ask of it:
    ``symlog`` is linear below the least power of ten. ``ranked``: with a front."""
    import altair as alt

    scale = alt.Scale(zero=False, padding=24)
    axis = alt.Axis(format=".3~s", grid=False, tickCount=6)
    params = [alt.param(name="cost", value=_NUMBER)]
    if kind != "linear":
        scale = alt.Scale(type=kind, padding=24)
        axis = alt.Axis(format=".3~s", grid=False, values=alt.ExprRef("powers"))
        params.append(alt.param(name="powers", value=_TICKS))
    if kind == "symlog":
        scale = alt.Scale(type=kind, constant=alt.ExprRef("least"), padding=24)
        params.append(alt.param(name="least", value=_LEAST))
    base = _base().transform_calculate(x="datum.x[cost]", front="datum.front[cost]", share="datum.share[cost]")
    base = base.transform_filter("isValid(datum.x)").encode(x=alt.X("x:Q", title=_COST, scale=scale, axis=axis))
    y = alt.Y("y:Q", title=_SCORE, scale=alt.Scale(zero=False), axis=alt.Axis(format=".6~g", gridOpacity=0.15))
    colour = alt.condition("datum.front === 1", alt.value(_ACCENT), alt.value(_MUTED))
    hint = [*_hint(), alt.Tooltip("x:Q", title=_COST, format=".3~s")]
    points = base.mark_point(size=55, strokeWidth=1.5).encode(
        y=y,
        href="href:N",
        stroke=colour,
        fill=colour,
        fillOpacity=alt.condition("datum.failed > 0", alt.value(0), alt.value(0.75)),
        tooltip=[*hint, alt.Tooltip("share:N", title="on the front")] if ranked else hint,
    )
    bars = base.mark_rule(color=_MUTED, opacity=0.6).encode(y=alt.Y("low:Q", title=_SCORE), y2="high:Q")
    layers: list[Any] = [bars, points]
    if ranked:
        front = base.transform_filter("datum.front === 1")
        layers.insert(0, front.mark_line(interpolate="step-after", color=_ACCENT, opacity=0.7).encode(y=y))
        layers.append(front.mark_text(align="left", dx=7, dy=-7, limit=120, color=_INK).encode(y=y, text="name:N"))
    chart = alt.layer(*layers).add_params(*params).properties(width="container", height=340, description=_ABOUT)
    return _made(chart)


# --- the tasks of a method --------------------------------------------------------------------------------------------


def gap_by_task(entries: Sequence[GapEntry]) -> Drawing:
    """Gap closed in percent with its 95 % interval by task, floor (0) and ceiling (100) marked; specification ``gap``.

    Tasks without a gap are not drawn.
    """
    rows: list[Record] = []
    for entry in entries:
        if entry.gap is not None and math.isfinite(entry.gap.mean):
            rows.append({"name": plain(entry.task), "href": entry.href} | _estimated(entry.gap, 100.0))
    values = {_SCORE: "gap closed (%), 0 = floor, 100 = ceiling", _ABOUT: "Gap closed by task"}
    return Drawing({"gap": _filled(_forest(True), values) | {"height": ROW * len(rows)}}, rows)


@cache
def _forest(gap: bool) -> Spec:
    import altair as alt

    # names from results may be long, and the axis may not take the room of the chart on a phone
    labels = alt.Axis(title=None, labelLimit=_NAME, domain=False, ticks=False, grid=True, gridOpacity=0.15)
    base = _base().encode(y=alt.Y("name:N", sort=None, axis=labels))
    axis = alt.Axis(format=".6~g", grid=False, tickCount=6)
    x = alt.X("y:Q", title=_SCORE, scale=alt.Scale(zero=False), axis=axis)
    bars = base.mark_rule(color=_INK, opacity=0.7).encode(x=alt.X("low:Q", title=_SCORE), x2="high:Q")
    points = base.mark_point(size=50, fill=_ACCENT, stroke=_ACCENT, strokeWidth=1.5).encode(
        x=x,
        href="href:N",
        fillOpacity=alt.condition("datum.failed > 0", alt.value(0), alt.value(1)),
        tooltip=_hint()[:-1] if gap else _hint(),
    )
    layers: list[Any] = [bars, points]
    if gap:
        ends = alt.Chart(alt.InlineData(values=[{"x": 0}, {"x": 100}]))
        layers.insert(0, ends.mark_rule(strokeDash=[4, 4], color=_MUTED).encode(x=alt.X("x:Q", title=_SCORE)))
    return _made(alt.layer(*layers).properties(width="container", description=_ABOUT))


def curves(frame: pd.DataFrame, points: int = POINTS) -> Curves:
    """Learning curves of a method by task and logged metric, one line for each of its labels.

    ``frame`` has the columns ``spec_digest``, ``label``, ``metric``, ``step``, and over the seeds that logged it
    ``value`` (mean), ``low``, ``high`` (smallest and largest) and ``seeds`` (how many), ordered by step. Rows that are
    not finite are left out. Each line is thinned to at most ``points`` (>= 2) steps, evenly spaced among those that
    were logged, the first and the last included. A row holds the lists of one line: about 30 bytes a point.
    """
    if points < 2:
        raise ValueError(f"a curve has at least its first and last point, not {points}")
    finite = frame[np.isfinite(frame[["value", "low", "high"]].to_numpy(dtype=np.float64)).all(axis=1)]
    # lists, as a page may have hundreds of short lines: cutting a frame takes a hundred times as long
    columns = {name: finite[name].tolist() for name in finite.columns}
    lines: dict[tuple[str, str, str], list[int]] = {}
    for position, key in enumerate(zip(columns["spec_digest"], columns["metric"], columns["label"], strict=True)):
        lines.setdefault(key, []).append(position)
    found: dict[tuple[str, str], list[Record]] = {}
    for (spec_digest, metric, label), kept in sorted(lines.items()):
        if len(kept) > points:
            kept = [kept[index] for index in np.unique(np.linspace(0, len(kept) - 1, points).round().astype(int))]
        record: Record = {"name": plain(str(label))}
        record |= {name: [columns[name][index] for index in kept] for name in ("step", "seeds")}
        record |= {name: [rounded(columns[name][index], 4) for index in kept] for name in ("value", "low", "high")}
        found.setdefault((str(spec_digest), str(metric)), []).append(record)
    ordered = dict(sorted(found.items(), key=lambda item: (item[0][0], item[0][1] != "loss", item[0][1])))
    several = any(len(lines) > 1 for lines in ordered.values())
    return Curves(_filled(_curve(several), {_ABOUT: "Mean over seeds by step, with the smallest and largest"}), ordered)


@cache
def _curve(several: bool) -> Spec:
    """``several``: lines in different colours, with a legend."""
    import altair as alt

    scale = alt.Scale(zero=False)
    base = _base().transform_flatten(["step", "value", "low", "high", "seeds"])
    base = base.encode(x=alt.X("step:Q", title="step", axis=alt.Axis(format=".3~s", grid=False, tickCount=5)))
    y = alt.Y("value:Q", title=None, scale=scale, axis=alt.Axis(format=".6~g", tickCount=5, gridOpacity=0.15))
    colour: dict[str, Any] = {"color": alt.value(_ACCENT)}
    if several:
        legend = alt.Legend(title=None, orient="bottom", columns=2, labelLimit=_NAME)
        colour = {"color": alt.Color("name:N", legend=legend, scale=alt.Scale(scheme="tableau10"))}
    hint = [
        alt.Tooltip("name:N", title="method"),
        alt.Tooltip("step:Q", title="step", format=","),
        alt.Tooltip("value:Q", title="mean", format=".4~g"),
        alt.Tooltip("low:Q", title="smallest", format=".4~g"),
        alt.Tooltip("high:Q", title="largest", format=".4~g"),
        alt.Tooltip("seeds:Q", title="seeds"),
    ]
    band = base.mark_area(opacity=0.2).encode(y=alt.Y("low:Q", title=None, scale=scale), y2="high:Q", **colour)
    line = base.mark_line(strokeWidth=1.5).encode(y=y, **colour)
    # invisible, but larger than the line: something to point at, and what is left of a curve with a single step
    points = base.mark_point(size=60, opacity=0).encode(y=y, tooltip=hint)
    return _made(alt.layer(band, line, points).properties(width="container", height=160, description=_ABOUT))


# --- what they share --------------------------------------------------------------------------------------------------


def rounded(value: float, digits: int = 6) -> float:
    """A value with this many significant digits: pages hold thousands of them."""
    short = float(f"{value:.{digits}g}")
    return int(short) if short.is_integer() and abs(short) < 1e15 else short


def _scored(board: Board, row: Row, name: str, href: str) -> Record | None:
    """What charts draw of a row's score, in the unit of the board; None without a finite score."""
    if row.score is None or not math.isfinite(row.score.mean):
        return None
    record = {"name": name, "href": href} | _estimated(row.score, factor_of(board))
    return record | {"failed": 0 if row.complete else max(row.n_failed, 1)}


def _estimated(value: Estimate, factor: float) -> Record:
    """A mean with its interval, and how people read it; without an interval no bar is drawn."""
    record: Record = {"y": rounded(factor * value.mean), "text": estimate(value, factor), "n": value.n}
    if value.low is not None and value.high is not None and math.isfinite(value.low) and math.isfinite(value.high):
        record |= {"low": rounded(factor * value.low), "high": rounded(factor * value.high)}
    return record


def _hint() -> list[alt.Tooltip]:
    """What is said about a point: name, value with interval, seeds and failures."""
    import altair as alt

    return [
        alt.Tooltip("name:N", title="name"),
        alt.Tooltip("text:N", title="mean ± 95 %"),
        alt.Tooltip("n:Q", title="seeds"),
        alt.Tooltip("failed:Q", title="failed jobs"),
    ]


def _base() -> alt.Chart:
    import altair as alt

    return alt.Chart(alt.NamedData(ROWS))


def _made(chart: Any) -> Spec:
    """The specification, which altair checks against the schema of Vega-Lite."""
    spec: Spec = chart.to_dict()
    del spec["config"]  # altair's size of plots; the pages have one configuration for all charts
    return spec


def _filled(spec: Spec, values: Mapping[str, Any]) -> Spec:
    """A copy of a specification in which texts that are keys of ``values`` are replaced by these."""

    def replaced(part: Any) -> Any:
        if isinstance(part, dict):
            return {name: replaced(value) for name, value in part.items()}
        if isinstance(part, list):
            return [replaced(value) for value in part]
        return values.get(part, part) if isinstance(part, str) else part

    return {name: replaced(value) for name, value in spec.items()}
