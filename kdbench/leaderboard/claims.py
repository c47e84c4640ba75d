"""Claims of papers, checked against the outcomes: a verdict per claim and task, and one per paper.

What is judged is our implementation at the scale of the tasks, not the paper. Verdicts use every seed that ran, and
methods at the parameters that the claim names, which are their declared defaults unless it says otherwise: what else
a sweep tried is never in it (:mod:`kdbench.leaderboard.verdicts` has the rules).
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from kdbench.catalog import DEFAULT_SCALE
from kdbench.errors import UsageError
from kdbench.leaderboard.findings import Conclusion, Finding, conclude
from kdbench.leaderboard.stated import Sought, Stated, canonical, claims_of
from kdbench.leaderboard.statistics import Direction
from kdbench.leaderboard.verdicts import Judgement, Side, judge
from kdbench.store import duck, schema

if TYPE_CHECKING:
    from pathlib import Path

    import duckdb

    from kdbench.discovery.records import Method
    from kdbench.registry import Registry

__all__ = ["Conclusion", "Finding", "conclude", "load_claims", "records"]


def load_claims(
    con: duckdb.DuckDBPyConnection,
    registry: Registry,
    *,
    methods: Iterable[str] | None = None,
    scale: str = DEFAULT_SCALE,
    seeds: Sequence[int] | None = None,
) -> list[Finding]:
    """Findings on the claims of all cards, or of ``methods`` (``track/slug``), by method, claim, task and scale.

    There is one for each task of a claim as it comes at ``scale``, whether or not anything ran on it, and one for
    each other scale and definition of the task on which the claim's subject ran. Tasks without that scale, and tasks
    that one side is not made for, are left out unless that leaves the claim without any. ``seeds``: only these count.
    """
    wanted = None if methods is None else set(methods)
    chosen = [
        method for key, method in registry.methods.items() if method.card.claims and (wanted is None or key in wanted)
    ]
    return _Checker(con, registry, chosen, scale, seeds).findings()


def decided(results: Path, registry: Registry, seeds: Sequence[int]) -> set[tuple[str, int, str]]:
    """What the outcomes of these seeds decide, either way: ``track/slug``, number of the claim, digest of the task.

    Raises ``UsageError`` for a folder without any finished job.
    """
    found = duck.query(results, lambda con: load_claims(con, registry, seeds=seeds))
    return {(item.method, item.number, item.spec_digest) for item in found if item.verdict != "undecided"}


def records(con: duckdb.DuckDBPyConnection, registry: Registry) -> list[dict[str, Any]]:
    """:func:`load_claims` as flat rows: what the view ``claims`` holds."""
    return [finding.record() for finding in load_claims(con, registry)]


# --- what the outcomes have -------------------------------------------------------------------------------------------


_EACH = "SELECT unnest(?::VARCHAR[])"
"""The texts of a list that is a parameter."""


@dataclass(frozen=True)
class _Definition:
    """A fully resolved task."""

    task: str
    scale: str
    digest: str
    family: str
    metrics: Mapping[str, Mapping[str, Any]]
    headline: str

    @classmethod
    def of(cls, spec: Mapping[str, Any], digest: str) -> _Definition:
        official = {item["name"]: item for item in (spec["headline"], *spec.get("metrics", ()))}
        return cls(spec["name"], spec["scale"], digest, spec["family"], official, spec["headline"]["name"])

    def bounds(self, metric: str) -> tuple[float | None, float | None]:
        lower, upper = self.metrics.get(metric, {}).get("bounds") or (None, None)
        return lower, upper

    def resolution(self, metric: str, examples: float) -> float:
        """What one test example can change in a metric; 0 where that is unknown."""
        lower, upper = self.bounds(metric)
        if metric != self.headline or lower is None or upper is None or examples < 1:
            return 0.0
        return (upper - lower) / examples


@dataclass(frozen=True)
class _Run:
    """A job of a side."""

    id: str
    seed: int
    status: str
    method_digest: str
    shared: tuple[int, int]
    """Versions, bumped by hand, of the code that methods share: of the track, and of all tracks."""
    modules: str
    """Digest of the modules of kdbench that it used."""


class _Checker:
    """Looks everything up at once, then judges."""

    def __init__(
        self,
        con: duckdb.DuckDBPyConnection,
        registry: Registry,
        methods: Sequence[Method],
        scale: str,
        seeds: Sequence[int] | None,
    ) -> None:
        self.con = con
        self.registry = registry
        self.scale = scale
        self.seeds = seeds
        self.claims = [stated for method in methods for stated in claims_of(registry, method)]
        self._standards: dict[tuple[str, str], _Definition | None] = {}
        self._mixtures: dict[frozenset[str], list[str]] = {}

    def findings(self) -> list[Finding]:
        return [
            self._finding(stated, place) if isinstance(place, _Definition) else self._nowhere(stated, place)
            for stated in self.claims
            for place in self._places(stated)
        ]

    # --- tasks --------------------------------------------------------------------------------------------------------

    def _places(self, stated: Stated) -> Iterator[_Definition | str]:
        """The tasks of a claim, or why it has none."""
        names, problem = stated.tasks(self.registry, self.scale)
        found = {}
        for name in names:
            definition = self._standard(name, self.scale)
            if definition is None:
                problem = f"{name} cannot be resolved at the scale {self.scale!r}"
            else:
                found[definition.digest] = definition
        for definition in self._in_results.get(stated.method.track, ()):
            about = definition.task, definition.family
            if stated.about(*about) and stated.fits(self.registry, *about) and self._jobs(definition, stated.subject):
                found.setdefault(definition.digest, definition)
        yield from found.values()
        if problem:
            yield problem

    def _standard(self, task: str, scale: str) -> _Definition | None:
        """A task as it comes; None where it does not come at this scale."""
        from kdbench.spec import digest

        if (task, scale) not in self._standards:
            try:
                identity = self.registry.task(task, scale).identity()
            except UsageError:
                self._standards[task, scale] = None
            else:
                self._standards[task, scale] = _Definition.of(identity, digest(identity))
        return self._standards[task, scale]

    @cached_property
    def _in_results(self) -> dict[str, list[_Definition]]:
        """Tasks that have outcomes, by track."""
        rows = self.con.execute("SELECT spec_digest, spec::VARCHAR FROM store.tasks ORDER BY spec_digest").fetchall()
        found = defaultdict(list)
        for digest, spec in rows:
            definition = _Definition.of(json.loads(spec), digest)
            found[definition.task.partition("/")[0]].append(definition)
        return found

    # --- jobs ---------------------------------------------------------------------------------------------------------

    def _jobs(self, definition: _Definition, side: Sought) -> list[_Run]:
        return self._runs.get((definition.digest, *self._row_of(side)), [])

    def _row_of(self, side: Sought) -> tuple[str, str]:
        """Method and digest of the parameters under which a side has results."""
        return side.key, "" if side.problem else self._digests.get((side.key, side.canonical), "")

    @cached_property
    def _sought(self) -> list[Sought]:
        return [side for stated in self.claims for side in stated.sides if side.key and not side.problem]

    @cached_property
    def _digests(self) -> dict[tuple[str, str], str]:
        """Digest of the parameters by method and their JSON."""
        rows = self.con.execute(
            f"SELECT DISTINCT method, params_digest, params::VARCHAR FROM store.jobs WHERE method IN ({_EACH})",
            [sorted({side.key for side in self._sought})],
        ).fetchall()
        return {(method, canonical(json.loads(params))): digest for method, digest, params in rows}

    @cached_property
    def _runs(self) -> dict[tuple[str, str, str], list[_Run]]:
        """Jobs that came to an end, with the newest version of their method, by task, method and parameters."""
        pairs = sorted({self._row_of(side) for side in self._sought})
        rows = self.con.execute(
            "SELECT spec_digest, method, params_digest, id, seed, status, method_digest, track_version, protocol, "
            f"modules_digest FROM store.current_jobs WHERE method || '/' || params_digest IN ({_EACH}) "
            "AND current AND status != 'interrupted' ORDER BY seed",
            [["/".join(pair) for pair in pairs]],
        ).fetchall()
        found: dict[tuple[str, str, str], list[_Run]] = defaultdict(list)
        for *key, id, seed, status, method_digest, track_version, protocol, modules in rows:
            if self.seeds is None or seed in self.seeds:
                run = _Run(id, seed, status, method_digest, (track_version, protocol), modules)
                found[key[0], key[1], key[2]].append(run)
        return dict(found)

    @cached_property
    def _values(self) -> dict[str, dict[tuple[str, str], float]]:
        """Of ``metrics`` and of meters (``costs``), by job and name."""
        names = sorted({stated.claim.metric for stated in self.claims})
        ids = [run.id for runs in self._runs.values() for run in runs if run.status == "ok"]
        found = {}
        for table, name in (("metrics", "metric"), ("costs", "cost")):
            rows = self.con.execute(
                f"SELECT id, {name}, value FROM store.{table} WHERE {name} IN ({_EACH}) "
                f"AND isfinite(value) AND id IN ({_EACH})",
                [names, ids],
            ).fetchall()
            found[table] = {(id, name): value for id, name, value in rows}
        return found

    @cached_property
    def _modules(self) -> dict[str, list[tuple[str, str]]]:
        """Modules of kdbench with their digests, by the digest of all of them."""
        found = defaultdict(list)
        for key, module, digest in self.con.execute(
            "SELECT modules_digest, module, digest FROM store.modules"
        ).fetchall():
            found[key].append((module, digest))
        return found

    @cached_property
    def _refusals(self) -> dict[str, list[str]]:
        """What a task said against a leaderboard in its newest job that was asked, by task."""
        rows = self.con.execute(
            "SELECT spec_digest, arg_max(coalesce(provenance ->> '$.gate', '[]'), finished_at) FROM store.current_jobs "
            "WHERE current AND status = 'ok' GROUP BY spec_digest"
        ).fetchall()
        return {digest: [str(reason) for reason in json.loads(gate)] for digest, gate in rows}

    @cached_property
    def _examples(self) -> dict[str, float]:
        """Test examples over which the headline metric is averaged, by task."""
        rows = self.con.execute(
            "SELECT j.spec_digest, max(c.value) FROM store.costs AS c JOIN store.jobs AS j USING (id) "
            "WHERE c.cost = ? AND j.status = 'ok' GROUP BY j.spec_digest",
            [schema.TEST_EXAMPLES],
        ).fetchall()
        return dict(rows)

    # --- judging ------------------------------------------------------------------------------------------------------

    def _nowhere(self, stated: Stated, reason: str) -> Finding:
        return Finding(
            method=stated.method.key,
            number=stated.number,
            claim=stated.claim,
            task=", ".join(stated.claim.tasks),
            scale=self.scale,
            spec_digest="",
            standard=True,
            subject=stated.subject.label,
            reference=stated.reference.label,
            direction=stated.claim.direction,
            unit="",
            factor=1.0,
            jobs=0,
            judgement=Judgement("undecided", 0, notes=(reason,), ran=False),
        )

    def _finding(self, stated: Stated, definition: _Definition) -> Finding:
        claim = stated.claim
        runs = [self._jobs(definition, side) for side in stated.sides]
        about = definition.metrics.get(claim.metric, {})
        table = self._table(claim.metric, definition, runs)
        direction: Direction = "min" if table == "costs" else about.get("direction", claim.direction)
        percent = about.get("unit") == "%" and definition.bounds(claim.metric)[1] == 1 and claim.kind != "ratio"
        standard = self._standard(definition.task, definition.scale)
        return Finding(
            method=stated.method.key,
            number=stated.number,
            claim=claim,
            task=definition.task,
            scale=definition.scale,
            spec_digest=definition.digest,
            standard=standard is not None and standard.digest == definition.digest,
            subject=stated.subject.label,
            reference=stated.reference.label,
            direction=direction,
            unit=about.get("unit", ""),
            factor=100.0 if percent else 1.0,
            jobs=sum(map(len, runs)),
            judgement=self._judged(stated, runs, table, direction, definition),
            mixed=self._mixture([run for side in runs for run in side]),
        )

    def _table(self, metric: str, definition: _Definition, runs: Sequence[Sequence[_Run]]) -> str:
        """Where the values of a metric are: a meter is what no task and no method measures under its name."""
        measured, metered = (
            any((run.id, metric) in self._values[table] for side in runs for run in side)
            for table in ("metrics", "costs")
        )
        return "costs" if metered and not measured and metric not in definition.metrics else "metrics"

    def _judged(
        self,
        stated: Stated,
        runs: Sequence[Sequence[_Run]],
        table: str,
        direction: Direction,
        definition: _Definition,
    ) -> Judgement:
        claim, values = stated.claim, self._values[table]
        problems = [side.problem for side in stated.sides if side.problem]
        if problems:
            return Judgement("undecided", 0, notes=tuple(dict.fromkeys(problems)), ran=False)
        for side, jobs in zip(stated.sides, runs, strict=True):
            done = [run for run in jobs if run.status == "ok"]
            if done and not any((run.id, claim.metric) in values for run in done):
                return Judgement("undecided", 0, notes=(f"{side.label} does not measure {claim.metric}",))
        subject, reference = (
            _side(side, jobs, claim.metric, values) for side, jobs in zip(stated.sides, runs, strict=True)
        )
        resolution = definition.resolution(claim.metric, self._examples.get(definition.digest, 0.0))
        found = judge(claim.kind, claim.margin, subject, reference, direction, resolution)
        notes = (*found.notes, *self._edited(stated.sides, runs))
        reasons = self._refusals.get(definition.digest, [])
        if reasons and found.n:
            said = f"the task says that its results say nothing about methods: {'; '.join(reasons)}"
            return replace(found, verdict="undecided", notes=(said, *notes))
        return replace(found, notes=notes)

    def _edited(self, sides: Sequence[Sought], runs: Sequence[Sequence[_Run]]) -> list[str]:
        """That methods were edited after their jobs ran."""
        old = [
            side.label
            for side, jobs in zip(sides, runs, strict=True)
            if any(run.method_digest != self.registry.methods[side.key].digest for run in jobs)
        ]
        return [f"{' and '.join(dict.fromkeys(old))} ran as an earlier version"] if old else []

    def _mixture(self, runs: Sequence[_Run]) -> tuple[str, ...]:
        """Parts of kdbench of which these jobs ran with different versions."""
        mixed = self._mixed(frozenset(run.modules for run in runs))
        if not mixed and len({run.shared for run in runs}) > 1:
            return ("the track or the protocol",)
        return tuple(mixed)

    def _mixed(self, digests: frozenset[str]) -> list[str]:
        """Modules of which these sets of modules have different versions."""
        if len(digests) < 2:
            return []
        if digests not in self._mixtures:
            versions = defaultdict(set)
            for modules in digests:
                for module, version in self._modules.get(modules, ()):
                    versions[module].add(version)
            self._mixtures[digests] = sorted(module for module, found in versions.items() if len(found) > 1)
        return self._mixtures[digests]


def _side(side: Sought, jobs: Sequence[_Run], metric: str, values: Mapping[tuple[str, str], float]) -> Side:
    measured = {run.seed: values[run.id, metric] for run in jobs if (run.id, metric) in values}
    failed = {
        run.seed: "without a value" if run.status == "ok" else run.status
        for run in jobs
        if (run.id, metric) not in values
    }
    return Side(side.label, measured, failed, side.constant)
