"""The results page of a suite: boards, and what extensions add to it."""

from __future__ import annotations

import kdbench
from kdbench.hookspecs import hookimpl
from kdbench.leaderboard.page import ResultsPage, page_path
from kdbench.store import membership
from tests.helpers.claims import compare, ran, write_paper
from tests.helpers.outcomes import put
from tests.helpers.runs import make_run
from tests.helpers.suites import registry_of
from tests.toytrack import EXTENSION, write_method

SUITE = {"name": "mine", "tasks": ["toy/bare@smoke"], "methods": ["plain"], "seeds": 2, "tracking": False}


class Notes:
    @hookimpl
    def kdbench_report_sections(self, results):
        return {"Notes": f"from {results.name}"}


class Wrong:
    @hookimpl
    def kdbench_report_sections(self, results):
        raise RuntimeError("no notes today")


def test_a_run_that_made_something_leaves_its_page_with_the_sections_of_extensions(tmp_path):
    results = tmp_path / "results"
    plugins = [EXTENSION, write_method(tmp_path / "methods", "plain")]
    kdbench.run(SUITE, results=results, plugins=plugins, workers=1, hooks=[Notes(), Wrong()])
    page = page_path(results, "mine")
    text = page.read_text()
    assert text.startswith("# mine\n")
    assert "toy/bare@smoke" in text
    assert "plain" in text
    assert "## Notes\n\nfrom results\n" in text
    assert [path.name for path in page.parent.iterdir()] == ["mine.md"]

    written = page.stat().st_ino
    kdbench.run(SUITE, results=results, plugins=plugins, workers=1)
    assert page.stat().st_ino == written, "nothing is new"
    page.write_text("of another state of the store, as a killed run leaves it")
    kdbench.run(SUITE, results=results, plugins=plugins, workers=1)
    assert page.read_text().startswith("# mine\n")
    page.unlink()
    kdbench.run(SUITE, results=results, plugins=plugins, workers=1)
    assert "toy/bare@smoke" in page.read_text()


def test_the_page_says_what_the_suites_tasks_tell_about_the_claims_of_its_methods(tmp_path):
    methods = tmp_path / "methods"
    write_paper(methods, "new", compare("new", "old", tasks=["line", "bare"]))
    write_paper(methods, "old")
    registry = registry_of(methods)
    outcomes = put(tmp_path, [*ran(registry, "new", [0.6, 0.7, 0.8]), *ran(registry, "old", [0.1, 0.2, 0.3])])
    elsewhere = put(tmp_path, ran(registry, "new", [0.1, 0.2, 0.3], task="toy/bare"))
    membership.add(tmp_path, "s", [outcome.id for outcome in outcomes], None)
    run = make_run(tmp_path, [outcome.job for outcome in outcomes])
    ResultsPage(registry.manager, registry).kdbench_run_finished(run, outcomes + elsewhere)
    text = page_path(tmp_path, "s").read_text()
    head, claims = text.split("## Claims\n")
    assert "toy/line@cpu" in head
    assert "| ✗ not reproduced | toy/new | 1: new < old |" in claims
    assert "| -0.5 | -0.5 to -0.5 | 3 |" in claims
    assert "toy/bare" not in claims, "it is not of this suite"

    other = make_run(tmp_path, [outcome.job for outcome in outcomes if outcome.job.method == "toy/old"])
    page_path(tmp_path, "s").unlink()
    ResultsPage(registry.manager, registry).kdbench_run_finished(other, outcomes)
    assert "## Claims" not in page_path(tmp_path, "s").read_text()
