"""kdbench from Python: ``kdbench.run(...)`` and ``kdbench.results(...)``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kdbench.leaderboard.frame import results as results
    from kdbench.schedule.result import RunResult
    from kdbench.schedule.session import Stale, SuiteLike

__all__ = ["results", "run"]


def run(
    suites: SuiteLike | Sequence[SuiteLike],
    *,
    results: str | Path = "results",
    seeds: int | Sequence[int] | None = None,
    filter: str | Sequence[str] | None = None,
    claims: bool = False,
    undecided: int | None = None,
    workers: int | None = None,
    fresh: bool = False,
    retry_failed: bool = False,
    stale: Stale = "keep",
    plugins: Sequence[str | Path] = (),
    tracking: bool | str = True,
    progress: bool = False,
    hooks: Sequence[object] = (),
) -> RunResult:
    """Run what is missing of a suite, or of several in one run, and return what came of all their jobs.

    A suite is a path, a name or a mapping with the keys of a suite file. Several share the machine fairly, and jobs
    that they have in common run once; they must name the same executor and tracking. ``result.of(name)`` is the part
    of one. ``seeds`` replaces the suites' own: a number of seeds, or the seeds. ``filter`` keeps the jobs whose task,
    method or label matches, ``claims`` those that claims of papers compare, and ``undecided=5`` of those the jobs of
    claims that seeds 0 to 4 in ``results`` do not decide. ``workers`` is the number of jobs at once (default: the
    suite's, or the cores of this machine). ``fresh`` runs everything again, ``retry_failed`` what failed,
    ``stale="rerun"`` what was made with other code of kdbench. ``plugins`` are files with methods or extensions.
    ``tracking=False`` leaves MLflow out; a text is a tracking URI. ``progress`` prints what happens. ``hooks`` are
    objects with event hooks (see ``kdbench.hookspecs``).

    Jobs run in processes of their own that do not import the calling script. Raises ``UsageError`` for bad input and
    ``KeyboardInterrupt`` after Ctrl-C, with what was finished in ``results``; failed jobs are in the result.
    """
    from kdbench.schedule.session import execute, plan_run

    session = plan_run(
        suites,
        results=results,
        seeds=seeds,
        filter=filter,
        claims=claims,
        undecided=undecided,
        workers=workers,
        fresh=fresh,
        retry_failed=retry_failed,
        stale=stale,
        plugins=plugins,
        tracking=tracking,
    )
    watchers = list(hooks)
    if progress:
        from kdbench.schedule.console import Console

        watchers.append(Console(expected=session.seconds))
    result = execute(session, hooks=watchers, workers=workers)
    if result.signal is not None:
        raise KeyboardInterrupt(f"{len(result.left)} jobs are left")
    return result


def __getattr__(name: str) -> Any:
    if name != "results":
        raise AttributeError(f"module 'kdbench.api' has no attribute {name!r}")
    from kdbench.leaderboard.frame import results

    return results
