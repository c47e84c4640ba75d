"""The results pages of a run's suites: boards and claims of each in Markdown, kept beside the results.

An implementation of the event hooks like any other; extensions add to the page through ``kdbench_report_sections``.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pluggy

from kdbench.errors import plain
from kdbench.hookspecs import hookimpl
from kdbench.job import Outcome, Run
from kdbench.leaderboard.boards import Selection, load_boards
from kdbench.leaderboard.render import boards_markdown
from kdbench.leaderboard.sections import sections
from kdbench.store import duck, spool

if TYPE_CHECKING:
    import duckdb

    from kdbench.registry import Registry


def page_path(results: Path, suite: str) -> Path:
    """Where the page of a suite is."""
    return results / "leaderboards" / f"{suite}.md"


class ResultsPage:
    """Writes the page of each suite at the end of a run, unless there is one of this state of the store."""

    def __init__(self, manager: pluggy.PluginManager, registry: Registry | None = None) -> None:
        """``registry``: whose cards' claims are looked at; default: of everything that is installed."""
        self.manager = manager
        self.registry = registry

    @hookimpl(trylast=True)
    def kdbench_run_finished(self, run: Run, outcomes: Sequence[Outcome]) -> None:
        if not len(outcomes):
            return
        for suite, ids in run.suites.items():
            path = page_path(run.results, suite)
            if _is_current(path, run.results):
                continue
            if any((spool.job_folder(run.results, id) / spool.OUTCOME).exists() for id in ids):
                self._write(run, suite, path)

    def _write(self, run: Run, suite: str, path: Path) -> None:
        def work(con: duckdb.DuckDBPyConnection) -> tuple[str, str]:
            return boards_markdown(load_boards(con, Selection(suite=suite))), self._claims(con, run, suite)

        boards, claims = duck.query(run.results, work)
        parts = [f"# {plain(suite)}\n", boards]
        if claims:
            parts.append(f"## Claims\n\n{claims}")
        parts += [f"## {plain(title)}\n\n{text}\n" for title, text in sections(self.manager, run.results).items()]
        path.parent.mkdir(parents=True, exist_ok=True)
        spool.write_whole(path, "\n".join(parts))
        state = duck.state_of(duck.published_path(run.results))
        os.utime(path, ns=(state, state))

    def _claims(self, con: duckdb.DuckDBPyConnection, run: Run, suite: str) -> str:
        """What the suite's tasks say about the claims of its methods, in Markdown."""
        from kdbench.leaderboard.claims import load_claims
        from kdbench.leaderboard.claimtext import claims_markdown
        from kdbench.registry import discover

        if self.registry is None:
            self.registry = discover()
        ids = set(run.suites[suite])
        jobs = [job for job in run.jobs if job.id in ids]
        digests = {job.spec_digest for job in jobs}
        found = load_claims(con, self.registry, methods={job.method for job in jobs})
        return claims_markdown([finding for finding in found if finding.jobs and finding.spec_digest in digests])


def _is_current(path: Path, results: Path) -> bool:
    """Whether a page was made of the store as it is published now."""
    published = duck.published_path(results)
    return path.exists() and published.exists() and duck.state_of(path) == duck.state_of(published)
