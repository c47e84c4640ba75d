"""Boards: what ``kdbench leaderboard`` shows, one per (task, scale, digest of the task).

A board compares jobs that solved exactly the same task. Of a method that was edited, only the newest version counts.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from operator import attrgetter
from typing import TYPE_CHECKING, Any

import numpy as np

from kdbench.leaderboard import reading, statistics
from kdbench.leaderboard.board import Board as Board
from kdbench.leaderboard.board import Row as Row
from kdbench.leaderboard.board import budget_text
from kdbench.leaderboard.board import reference as reference
from kdbench.leaderboard.fronts import cost_estimates as cost_estimates
from kdbench.leaderboard.fronts import costs_of as costs_of
from kdbench.leaderboard.fronts import front as front
from kdbench.leaderboard.reading import BoardJob, Spent
from kdbench.leaderboard.records import records as records
from kdbench.leaderboard.selection import Selection as Selection
from kdbench.leaderboard.ties import letters, tie_groups
from kdbench.spec import SCALES, digest

if TYPE_CHECKING:
    import duckdb

UNFINISHED = "interrupted"
"""Status of jobs that neither succeeded nor failed: they run again, and no board counts them."""
LETTERS = 20
"""Methods up to which a board shows letters of ties; larger ones are read by their ranges of ranks."""


def load_boards(
    con: duckdb.DuckDBPyConnection,
    selection: Selection | None = None,
    metric: str | None = None,
    *,
    mix_budgets: bool = False,
) -> list[Board]:
    """Boards of the selected jobs, by task, scale and (newest first) definition of the task.

    ``metric``: any official or extra metric; boards without it are left out. None: each task's headline metric.
    ``mix_budgets``: definitions that differ only in their limits share a board, on which every row names its own;
    without it they stay apart, with a note. Raises ``UsageError`` where nothing fits.
    """
    selection = selection or Selection()
    selection.check(con)
    jobs = reading.read_jobs(con, selection, metric)
    if metric is not None:
        reading.check_metric(con, selection, metric, jobs)
    about = reading.read_tasks(con)
    spent = reading.read_costs(con, [job.id for job in jobs if job.status == "ok"])
    modules = reading.read_modules(con)
    left_out = reading.read_older(con, selection)
    families = _families(about, {job.spec_digest for job in jobs})
    boards = []
    key = families if mix_budgets else dict(zip(families, families, strict=True))
    for group in _grouped(jobs, lambda job: key[job.spec_digest]).values():
        if metric is None or any(job.value is not None for job in group):
            board = _board(group, about, metric, spent, modules, families)
            older = sum(left_out[spec_digest] for spec_digest in {job.spec_digest for job in group})
            if older:
                board.notes.append(f"{older} results of earlier versions of its methods are left out")
            boards.append((max(job.finished_at for job in group), board))
    boards.sort(key=lambda pair: pair[0], reverse=True)
    boards.sort(key=lambda pair: (pair[1].task, SCALES.index(pair[1].scale) if pair[1].scale in SCALES else 99))
    found = [board for _, board in boards]
    _note_definitions(found, families)
    return found


def _grouped(items: Iterable[Any], key: Any) -> dict[Any, list[Any]]:
    groups: dict[Any, list[Any]] = defaultdict(list)
    for item in items:
        groups[key(item)].append(item)
    return groups


def _families(about: Mapping[str, Mapping[str, Any]], digests: Iterable[str]) -> dict[str, str]:
    """For each digest of a task, one that is the same for all tasks that differ from it only in their limits."""
    found: dict[str, str] = {}
    for same in _grouped(digests, lambda key: (about[key]["name"], about[key]["scale"])).values():
        if len(same) == 1:
            found[same[0]] = same[0]
            continue
        for family in _grouped(same, lambda key: _without_limits(about[key])).items():
            name, members = family
            found |= dict.fromkeys(members, members[0] if len(members) == 1 else name)
    return found


def _without_limits(spec: Mapping[str, Any]) -> str:
    return digest({name: value for name, value in spec.items() if name != "limits"})


def _note_definitions(boards: Sequence[Board], families: Mapping[str, str]) -> None:
    """Say on each board which others there are of the same task: other budgets, other definitions."""
    for same in _grouped(boards, lambda board: board.title).values():
        family = {id(board): families.get(board.spec_digest, board.spec_digest) for board in same}
        several = len(set(family.values()))
        for board in same:
            budgets = [
                f"{budget_text(other.limits)} ({len(other.rows)} method{'s' * (len(other.rows) != 1)})"
                for other in same
                if other is not board and family[id(other)] == family[id(board)]
            ]
            if budgets:
                board.notes.append(
                    f"other budgets exist: {'; '.join(budgets)}; scores at different budgets are not comparable, "
                    "kdbench leaderboard --mix-budgets shows them on one board all the same"
                )
            if several > 1:
                board.notes.append(
                    f"one of {several} definitions of {board.title} (this one: {board.spec_digest}); "
                    "they are different tasks and not comparable"
                )


def _board(
    jobs: Sequence[BoardJob],
    tasks: Mapping[str, Mapping[str, Any]],
    metric: str | None,
    spent: Spent,
    modules: Mapping[str, Mapping[str, str]],
    families: Mapping[str, str],
) -> Board:
    digests = sorted({job.spec_digest for job in jobs}, key=lambda key: tuple(tasks[key]["limits"].values()))
    spec = tasks[digests[0]]
    metric = metric or str(spec["headline"]["name"])
    official = {item["name"]: item for item in (spec["headline"], *spec.get("metrics", ()))}
    about = official.get(metric, {})
    seeds = sorted({job.seed for job in jobs})
    rows = _rows(jobs, {seed: index for index, seed in enumerate(seeds)}, spent, bool(about))
    mixed = _mixtures(jobs, modules)
    for row, group in rows:
        row.limits = dict(tasks[row.spec_digest]["limits"])
        row.mixed = sorted({part for job in group for part in mixed.get(job.id, ())})
    lower, upper = about.get("bounds") or (None, None)
    joined = len(digests) > 1
    board = Board(
        task=str(spec["name"]),
        scale=str(spec["scale"]),
        spec_digest=families[digests[0]] if joined else digests[0],
        metric=metric,
        headline=metric == spec["headline"]["name"],
        direction=about.get("direction"),
        unit=about.get("unit", ""),
        bounds=(lower, upper),
        limits={} if joined else dict(spec.get("limits", {})),
        teacher_seed=int(spec.get("teacher_seed", 0)),
        floor=str(spec.get("floor", "")),
        ceiling=str(spec.get("ceiling", "")),
        seeds=seeds,
        rows=[row for row, _ in rows],
        refused=_refused(jobs),
        meters=spent.meters,
        budgets=[dict(tasks[key]["limits"]) for key in digests] if joined else [],
    )
    _compare(board)
    board.notes += _notes(board, jobs)
    return board


def _rows(
    jobs: Sequence[BoardJob], column: Mapping[int, int], spent: Spent, official: bool
) -> list[tuple[Row, list[BoardJob]]]:
    """A row for each method with parameters (and budget) that has a job, with its jobs; scores and costs are set."""
    groups = _grouped(jobs, lambda job: (job.method, job.params, job.spec_digest))
    started = [[job for job in group if job.status != UNFINISHED] for group in groups.values()]
    values = np.full((len(groups), len(column)), np.nan)
    costs = np.full((len(groups), len(column), len(spent.meters)), np.nan)
    succeeded = [(index, job) for index, group in enumerate(started) for job in group if job.status == "ok"]
    if succeeded:
        places = [index for index, _ in succeeded], [column[job.seed] for _, job in succeeded]
        values[places] = [np.nan if job.value is None else job.value for _, job in succeeded]
        costs[places] = spent.of([job.id for _, job in succeeded])
    values[~np.isfinite(values)] = np.nan
    costs = costs.transpose(0, 2, 1)
    counts = np.isfinite(values).sum(axis=1).tolist()
    scores = statistics.mean_intervals(values)
    means = _means(costs).tolist()
    rows = []
    for index, ((method, params, spec_digest), group) in enumerate(groups.items()):
        failed = [job.status for job in started[index] if job.status != "ok"]
        if not started[index] or (counts[index] == 0 and not official):
            continue  # a method's own metric says nothing about methods that do not measure it
        row = Row(
            method=method,
            label=group[0].label if len(group) == 1 else max(group, key=_finished).label,
            params=json.loads(params),
            score=scores[index],
            values=values[index],
            n_failed=len(failed),
            failures=dict(Counter(failed)) if failed else {},
            costs={name: mean for name, mean in zip(spent.meters, means[index], strict=True) if mean == mean},
            complete=counts[index] == len(started[index]),
            spent=costs[index],
            spec_digest=spec_digest,
        )
        rows.append((row, group))
    _tell_apart(rows)
    return rows


def _tell_apart(rows: Sequence[tuple[Row, list[BoardJob]]]) -> None:
    """Two rows have one label where a default changed between their jobs: the older one gets what it differs in."""
    for alike in _grouped(rows, lambda each: (each[0].method, each[0].label, each[0].spec_digest)).values():
        if len(alike) > 1:
            from kdbench.resolve import extended  # seldom needed, and it takes the reading of suites with it

            (newest, _), *older = sorted(alike, key=lambda each: max(map(_finished, each[1])), reverse=True)
            for row, _ in older:
                row.label = extended(row.label, _different(row.params, newest.params))


def _different(params: Mapping[str, Any], others: Mapping[str, Any]) -> dict[str, Any]:
    """What ``params`` have other than ``others``, or alone."""
    return {name: value for name, value in params.items() if name not in others or others[name] != value}


_finished = attrgetter("finished_at")


def _means(values: statistics.Values) -> statistics.Values:
    """Means over the last axis of what is not NaN; NaN where everything is."""
    here = ~np.isnan(values)
    counts = here.sum(axis=-1)
    sums = np.where(here, values, 0.0).sum(axis=-1)
    return np.where(counts, sums / np.maximum(counts, 1), np.nan)


def _refused(jobs: Sequence[BoardJob]) -> list[str]:
    """What the task said against a board in the newest job that got as far as being asked."""
    asked = [job for job in jobs if job.status == "ok"]
    newest = max(asked, key=lambda job: job.finished_at, default=None)
    if newest is None or newest.gate is None:
        return []
    return [str(reason) for reason in json.loads(newest.gate)]


def _compare(board: Board) -> None:
    """Ranks, gap closed and order: by mean, the methods that failed somewhere behind, those without a value last."""
    sign = -1.0 if board.direction == "min" else 1.0

    def position(row: Row) -> tuple[bool, bool, float, str]:
        return row.score is None, not row.complete, -sign * row.score.mean if row.score else 0.0, row.label

    board.rows.sort(key=position)
    if board.direction is None or not board.rows:
        return
    values = np.stack([row.values for row in board.rows])
    complete = np.array([row.complete for row in board.rows])
    ranks = statistics.ranks(values, complete, board.direction, board.resolution)
    for row, rank in zip(board.rows, ranks, strict=True):
        row.rank = rank
    if len(board.rows) <= LETTERS:
        _letter(board)
    for same in _grouped(board.rows, lambda row: row.spec_digest).values():
        # a row is measured by the floor and the ceiling of its own budget, as on a board of that budget alone
        floor, ceiling = (reference(board, slug, same[0].spec_digest) for slug in (board.floor, board.ceiling))
        if floor is None or ceiling is None:
            continue
        own = np.stack([row.values for row in same])
        gaps = statistics.gaps_closed(own, floor.values, ceiling.values, board.direction, board.resolution)
        for row, gap in zip(same, gaps, strict=True):
            row.gap = gap


def _letter(board: Board) -> None:
    """Letters of ties for the rows that were tested and failed nowhere, the best having a."""
    rows = [row for row in board.rows if row.complete and row.rank is not None]
    if len(rows) < 2 or board.direction is None:
        return
    pairs = statistics.separations(np.stack([row.values for row in rows]), board.direction, board.resolution)
    for row, text in zip(rows, letters(tie_groups(pairs), len(rows)), strict=True):
        row.ties = text


def _mixtures(jobs: Sequence[BoardJob], modules: Mapping[str, Mapping[str, str]]) -> dict[str, list[str]]:
    """For each job, the parts of kdbench of which another job of the board used a newer version."""
    newest: dict[str, str] = {}
    track_version = max(job.track_version for job in jobs)
    protocol = max(job.protocol for job in jobs)
    last = None
    for job in sorted(jobs, key=lambda job: job.finished_at):
        if job.modules_digest != last:  # most are of the same set as the one before, which changes nothing
            last = job.modules_digest
            newest.update(modules.get(last, {}))
    by_set = {
        key: [module for module, digest in modules.get(key, {}).items() if newest[module] != digest]
        for key in {job.modules_digest for job in jobs}
    }
    found = {}
    for job in jobs:
        parts = list(by_set[job.modules_digest])
        if job.track_version != track_version:
            parts.append(f"track version {job.track_version}")
        if job.protocol != protocol:
            parts.append(f"protocol {job.protocol}")
        if parts:
            found[job.id] = parts
    return found


def _notes(board: Board, jobs: Sequence[BoardJob]) -> list[str]:
    notes = []
    mixed = [row for row in board.rows if row.mixed]
    if mixed:
        parts = sorted({part for row in mixed for part in row.mixed})
        shown = ", ".join(parts[:4]) + (f" and {len(parts) - 4} more" if len(parts) > 4 else "")
        notes.append(
            f"rows marked * come from an older version of kdbench's own code ({shown}); kdbench run with "
            "--stale rerun makes them anew"
        )
    devices = sorted({job.device.split(":")[0] for job in jobs if job.device})
    if len(devices) > 1:
        notes.append(f"jobs ran on different devices ({', '.join(devices)}): do not compare their seconds")
    if board.direction is None:
        notes.append(f"{board.metric} is measured by methods themselves: not ranked")
    elif board.rows and all(row.rank is None for row in board.rows):
        notes.append("ranks need at least two seeds per method")
    return notes
