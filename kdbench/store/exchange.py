"""Results of another machine become jobs of this one's spool.

Everything is checked before anything is written, so that a source with anything wrong in it changes nothing. Then
each job arrives as a run's jobs do: written in ``running/``, moved into ``jobs/`` by one rename. A kill in between
leaves whole jobs alone, and the same import again brings the rest.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from kdbench.errors import Problem, UsageError
from kdbench.job import Outcome, utcnow
from kdbench.schedule import attempts
from kdbench.store import duck, membership, sources, spool
from kdbench.store.sources import Arrival, Source

ORIGIN = "imported"
"""Key of the provenance that says from where and when a job was taken over."""


@dataclass(frozen=True)
class Difference:
    """A metric that equal work gave differently, here and there."""

    id: str
    task: str
    scale: str
    label: str
    seed: int
    metric: str
    ours: float | None
    """None where the metric is missing."""
    theirs: float | None


@dataclass
class Taken:
    """What an import did, or would do."""

    new: list[str] = field(default_factory=list)
    """Ids of jobs that had no outcome here."""
    better: list[str] = field(default_factory=list)
    """Ids of jobs that are ok there and were not here."""
    known: list[str] = field(default_factory=list)
    """Ids of jobs whose outcome here was kept, those that differ included."""
    busy: list[str] = field(default_factory=list)
    """Ids of jobs that run here now, or wait to go on from a checkpoint: left to the run."""
    differences: list[Difference] = field(default_factory=list)
    """Of jobs that are ok on both sides; ours are kept."""
    suites: list[str] = field(default_factory=list)
    bare: list[str] = field(default_factory=list)
    """Ids of imported jobs some of whose files stayed behind; their provenance names them."""


Verdict = Literal["new", "better", "known"]


def take_over(place: Path, results: Path, *, dry_run: bool = False, problems: list[Problem] | None = None) -> Taken:
    """Bring the outcomes of ``place`` into ``results``, with the suites that they belong to, and the store up to date.

    Of a job that is on both sides ours stays, unless ours is not ok and theirs is. Where an outcome came from is
    added to its provenance. ``dry_run``: change nothing. Outcomes of ours that cannot be read are left alone and
    added to ``problems``. Raises ``UsageError``, and has changed nothing, for a source in which anything is wrong; for
    a disk that cannot be written it is raised too, and the same call goes on from there.
    """
    found: list[Problem] = []
    taken = Taken()
    try:
        if place.exists() and results.exists() and place.resolve() == results.resolve():
            raise UsageError("these are the results that it would be imported into", place=str(place))
        with sources.opened(place) as source:
            ids = source.ids()
            if not ids:
                raise UsageError("holds no finished jobs", place=str(place))
            members = source.members()
            for arrival in source.arrivals(ids):
                _sort(results, arrival.outcome, taken, found)
            if not dry_run:
                _bring(source, place, results, taken)
                for suite, of_suite in members.items():
                    membership.join(results, suite, of_suite)
                duck.sync(results, problems=found)
    except OSError as error:
        hint = "what was imported is kept; the same command goes on from there"
        message = f"the import cannot go on: {error.strerror or error}"
        raise UsageError(message, place=str(error.filename or results), hint=hint) from error
    taken.suites = sorted(members)
    if found:
        spool.report(UsageError(list(dict.fromkeys(found))), problems)
    return taken


def _sort(results: Path, theirs: Outcome, taken: Taken, problems: list[Problem]) -> None:
    """Note what is to become of an outcome."""
    try:
        ours = spool.read_outcome(spool.job_folder(results, theirs.id))
    except UsageError as error:
        problems.extend(error.problems)
        taken.known.append(theirs.id)
        return
    getattr(taken, _verdict(ours, theirs)).append(theirs.id)
    if ours is not None and ours.status == theirs.status == "ok":
        taken.differences += differences(ours, theirs)


def _verdict(ours: Outcome | None, theirs: Outcome) -> Verdict:
    if ours is None:
        return "new"
    return "better" if ours.status != "ok" and theirs.status == "ok" else "known"


def differences(ours: Outcome, theirs: Outcome) -> list[Difference]:
    """Official metrics that two outcomes of one job do not share, to the last bit; undefined ones are equal."""
    job = ours.job
    names = dict.fromkeys((*ours.metrics, *theirs.metrics))
    pairs = [(name, ours.metrics.get(name), theirs.metrics.get(name)) for name in names]
    return [
        Difference(ours.id, job.task, job.scale, job.label, job.seed, name, a, b)
        for name, a, b in pairs
        if a != b and not (a is not None and b is not None and math.isnan(a) and math.isnan(b))
    ]


def _bring(source: Source, place: Path, results: Path, taken: Taken) -> None:
    """Write what is new or better; what a run has or did meanwhile is moved to where it belongs in ``taken``."""
    wanted = sorted((*taken.new, *taken.better))
    if not wanted:
        return
    attempts.require_writable(results)
    origin = _origin(place)
    for arrival in source.arrivals(wanted):
        id = arrival.outcome.id
        end = _write(results, arrival, origin)
        if end == "bare":
            taken.bare.append(id)
        elif end != "whole":
            (taken.new if id in taken.new else taken.better).remove(id)
            (taken.busy if end == "busy" else taken.known).append(id)
    attempts.settle(results)


def _origin(place: Path) -> dict[str, Any]:
    return {"from": str(place), "at": utcnow().isoformat(timespec="seconds")}


def _write(results: Path, arrival: Arrival, origin: Mapping[str, Any]) -> Literal["whole", "bare", "known", "busy"]:
    """Put an outcome into the spool, with all of its files or not; or leave it out, as it is known or busy here."""
    outcome = arrival.outcome
    claim = attempts.claim(results, outcome.id)
    if claim is None:
        return "busy"
    try:
        if _verdict(spool.read_outcome(spool.job_folder(results, outcome.id)), outcome) == "known":
            return "known"  # a run was quicker
        if outcome.status != "ok" and spool.has_checkpoint(claim.folder):
            return "busy"  # a failure elsewhere is no reason to give up what was trained here
        folder = claim.clear()
        behind = _fill(folder, arrival, origin)
        spool.write_outcome(folder, outcome)
        claim.publish()
    finally:
        claim.release()
    return "bare" if behind else "whole"


def _fill(folder: Path, arrival: Arrival, origin: Mapping[str, Any]) -> set[str]:
    """Write what there is of a job into an empty folder, but for its outcome, which then says where it came from.

    Returns which files stayed behind.
    """
    outcome = arrival.outcome
    arrival.fill(folder)
    behind = set(outcome.artifacts)
    outcome.artifacts = spool.artifacts(folder)
    behind.difference_update(outcome.artifacts)
    before = outcome.provenance.get(ORIGIN)
    outcome.provenance[ORIGIN] = {
        **origin,
        **({"without": sorted(behind)} if behind else {}),
        **({"before": before} if before else {}),
    }
    return behind


def unpack(places: Sequence[Path], results: Path) -> int:
    """Fill ``results``, a folder that nobody else knows of yet, with the outcomes of all places; returns their number.

    Of a job that several places have the first outcome counts, unless it is not ok and a later one is. As nothing here
    can be lost, jobs are not claimed and nothing waits for the disk, which is most of what an import takes. Raises
    ``UsageError`` for a source in which anything is wrong, and then what is in ``results`` is of no use.
    """
    known: dict[str, str] = {}
    for place in places:
        with sources.opened(place) as source:
            origin = _origin(place)
            for arrival in source.arrivals(source.ids()):
                outcome = arrival.outcome
                before = known.get(outcome.id)
                if before is not None and (before == "ok" or outcome.status != "ok"):
                    continue
                folder = spool.job_folder(results, outcome.id)
                folder.mkdir(parents=True, exist_ok=True)
                spool.empty(folder)
                _fill(folder, arrival, origin)
                spool.write_outcome(folder, outcome, durable=False)
                known[outcome.id] = outcome.status
            for suite, of_suite in source.members().items():
                membership.join(results, suite, of_suite)
    problems: list[Problem] = []
    duck.sync(results, problems=problems)
    if problems:
        raise UsageError(problems)
    return len(known)
