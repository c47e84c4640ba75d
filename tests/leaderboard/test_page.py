"""The results page of a suite: boards, and what extensions add to it."""

from __future__ import annotations

import kdbench
from kdbench.hookspecs import hookimpl
from kdbench.leaderboard.page import page_path
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

    page.write_text("kept, because nothing is new")
    kdbench.run(SUITE, results=results, plugins=plugins, workers=1)
    assert page.read_text() == "kept, because nothing is new"
    page.unlink()
    kdbench.run(SUITE, results=results, plugins=plugins, workers=1)
    assert "toy/bare@smoke" in page.read_text()
