"""The results page of a suite: its boards in Markdown, kept beside the results.

An implementation of the event hooks like any other; extensions add to the page through ``kdbench_report_sections``.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from pathlib import Path

import pluggy

from kdbench.discovery.extensions import contributions
from kdbench.discovery.records import Broken
from kdbench.errors import plain
from kdbench.hookspecs import hookimpl
from kdbench.job import Outcome, Run
from kdbench.leaderboard.boards import Selection, load_boards
from kdbench.leaderboard.render import boards_markdown
from kdbench.store import duck

log = logging.getLogger(__name__)


def page_path(results: Path, suite: str) -> Path:
    """Where the page of a suite is."""
    return results / "leaderboards" / f"{suite}.md"


class ResultsPage:
    """Writes the page at the end of a run that made something new, or where the page is missing."""

    def __init__(self, manager: pluggy.PluginManager) -> None:
        self.manager = manager

    @hookimpl(trylast=True)
    def kdbench_run_finished(self, run: Run, outcomes: Sequence[Outcome]) -> None:
        path = page_path(run.results, run.suite)
        if not len(outcomes) or (path.exists() and not run.todo):
            return
        boards = duck.query(run.results, lambda con: load_boards(con, Selection(suite=run.suite)))
        parts = [f"# {plain(run.suite)}\n", boards_markdown(boards)]
        for extension, sections in contributions(self.manager, "kdbench_report_sections", results=run.results):
            if isinstance(sections, Broken):
                log.warning("%s: %s", sections.place, sections.reason)
                continue
            try:
                parts += [f"## {plain(title)}\n\n{str(text).rstrip()}\n" for title, text in dict(sections).items()]
            except (TypeError, ValueError):
                log.warning("%s: its kdbench_report_sections returned no mapping of titles to texts", extension)
        path.parent.mkdir(parents=True, exist_ok=True)
        work = path.with_suffix(".tmp")
        work.write_text("\n".join(parts), encoding="utf-8")
        os.replace(work, path)
