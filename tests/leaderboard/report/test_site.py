"""A whole site: written once, complete, and built again in its place."""

from __future__ import annotations

import json

import pytest

from kdbench.errors import UsageError
from kdbench.leaderboard.boards import Selection
from kdbench.leaderboard.report import site as sites
from kdbench.leaderboard.report.folder import MANIFEST
from kdbench.registry import Registry
from tests.helpers.outcomes import grid, put


def test_a_site_has_pages_scripts_and_data_and_is_built_again_in_its_place(tmp_path):
    results, out = tmp_path / "results", tmp_path / "site"
    put(results, [*grid({"kd": [0.5, 0.6], "gone": [0.4, None]}), *grid({"kd": [0.5]}, task="llm/text")])
    built = sites.build(results, out, registry=Registry())
    files = {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()}
    assert files - {MANIFEST} == set(json.loads((out / MANIFEST).read_text())["files"])
    assert {"index.html", "assets/site.js", "assets/site.css", "assets/vega.js", "assets/tables.js"} <= files
    assert "assets/data/compare.js" in files
    assert built.pages == sum(file.endswith(".html") for file in files)
    assert built.files == len(files) - 1
    assert built.size == sum((out / file).stat().st_size for file in files - {MANIFEST})
    assert built.index == out / "index.html"

    again = sites.build(results, out, registry=Registry(), selection=Selection(track="llm"))
    assert again.pages < built.pages
    assert not (out / "methods" / "vision.gone.html").exists()
    assert (out / "methods" / "llm.kd.html").exists()


def test_a_folder_of_something_else_is_refused_before_results_are_read(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").touch()
    with pytest.raises(UsageError, match="no site that kdbench wrote"):
        sites.build(tmp_path / "none", tmp_path / "out")


def test_without_results_nothing_is_written(tmp_path):
    with pytest.raises(UsageError, match="does not exist, so there are no results"):
        sites.build(tmp_path / "none", tmp_path / "out", registry=Registry())
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir())


def test_a_missing_package_is_named_with_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setattr(sites, "find_spec", lambda name: None if name == "altair" else object())
    with pytest.raises(UsageError, match="altair") as error:
        sites.build(tmp_path, tmp_path / "out")
    assert "kdbench[report]" in error.value.problems[0].hint
    assert not (tmp_path / "out").exists()
