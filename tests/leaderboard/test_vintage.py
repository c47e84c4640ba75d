"""With what results were made, and how much of it has changed since."""

from __future__ import annotations

from pathlib import Path

import pytest

from kdbench.history import module_digest
from kdbench.leaderboard.vintage import Vintage, vintage
from kdbench.store import duck
from tests.helpers.claims import ran, write_paper
from tests.helpers.outcomes import make_job, make_outcome, put
from tests.helpers.suites import registry_of


class Here:
    """Results of the methods ``toy/new`` and ``toy/old``, made with the code that is here unless a test says so."""

    def __init__(self, folder: Path) -> None:
        write_paper(folder / "methods", "new")
        write_paper(folder / "methods", "old")
        self.registry = registry_of(folder / "methods")
        self.results = folder / "results"

    def ran(self, slug: str, seeds: int = 2, commit: str = "a" * 40, dirty: bool = False, **more: object) -> None:
        outcomes = ran(self.registry, slug, [0.5] * seeds, **{"modules": module_digest("kdbench.task"), **more})
        for outcome in outcomes:
            outcome.provenance |= {"git": {"commit": commit, "dirty": dirty}, "packages": {"kdbench": "0.1.0"}}
        put(self.results, outcomes)

    def vintage(self) -> Vintage:
        return duck.query(self.results, lambda con: vintage(con, self.registry))


@pytest.fixture
def here(tmp_path: Path) -> Here:
    return Here(tmp_path)


def test_results_of_the_code_that_is_here_have_nothing_old(here):
    here.ran("new")
    found = here.vintage()
    assert (found.jobs, found.old_methods, found.other_tasks, found.old_modules) == (2, 0, 0, 0)
    assert found.line() == (
        "2 jobs, kdbench 0.1.0, commit aaaaaaa, until 2026-01-02; nothing that they used has changed since"
    )


def test_what_has_changed_is_counted_in_one_line(here):
    here.ran("new", 3)
    here.ran("old", 2, digest="earlier", commit="b" * 40, dirty=True)
    here.ran("old", 1, task="toy/bare", limits={"steps": 7}, modules="earlier", commit="c" * 40)
    found = here.vintage()
    assert (found.jobs, found.old_methods, found.other_tasks, found.old_modules) == (6, 2, 1, 1)
    assert found.commits == ("aaaaaaa", "bbbbbbb with uncommitted changes", "ccccccc")
    line = found.line()
    assert "\n" not in line
    assert line == (
        "6 jobs, kdbench 0.1.0, commit aaaaaaa and 2 more, until 2026-01-02; "
        "2 with an earlier version of their method, 1 on tasks that are defined otherwise now, "
        "1 with other code of kdbench than is here"
    )


def test_methods_and_tasks_that_are_gone_count_as_changed_and_missing_provenance_is_not_named(here):
    outcome = make_outcome(make_job("gone", 0, task="toy/gone"), modules="earlier")
    outcome.provenance = {}
    put(here.results, outcome)
    assert here.vintage().line() == (
        "1 job, until 2026-01-02; all with an earlier version of their method, "
        "all on tasks that are defined otherwise now"
    )


def test_texts_of_results_are_no_commands_for_a_terminal(here):
    here.ran("new", commit="\x1b[31mx")
    assert "\x1b" not in here.vintage().line()
