"""``kdbench report``: a site from the command line."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from kdbench.cli import make_app
from kdbench.leaderboard.report import assets
from tests.helpers.outcomes import grid, put
from tests.helpers.reference import come_with, ship


@pytest.fixture
def run(monkeypatch):
    monkeypatch.setattr(assets, "write_assets", lambda out: [])  # seconds; tests of the whole site write them
    return lambda *words: CliRunner().invoke(make_app(), ["report", *map(str, words)])


def test_a_site_is_written_and_the_page_to_open_is_named(run, tmp_path):
    put(tmp_path / "results", [*grid({"kd": [0.5, 0.6]}), *grid({"kd": [0.5]}, task="llm/text")])
    done = run("--results", tmp_path / "results", "--out", tmp_path / "site", "--track", "vision")
    assert done.exit_code == 0, done.output
    assert f"open {tmp_path / 'site' / 'index.html'}" in done.stdout
    assert (tmp_path / "site" / "tracks" / "vision.html").exists()
    assert not (tmp_path / "site" / "tracks" / "llm.html").exists()
    data = json.loads(run("--results", tmp_path / "results", "--out", tmp_path / "site", "--json").stdout)
    assert data["pages"] == len(list((tmp_path / "site").rglob("*.html")))
    assert data["index"] == str(tmp_path / "site" / "index.html")


def test_a_site_of_reference_results(run, tmp_path, monkeypatch):
    folder = come_with(monkeypatch, tmp_path / "reference")
    monkeypatch.setenv("KDBENCH_CACHE", str(tmp_path / "cache"))
    ship(folder, "vision", grid({"kd": [0.5, 0.6]}))
    ship(folder, "llm", grid({"sft": [0.5]}, task="llm/text"))
    done = run("--reference", "--out", tmp_path / "site")
    assert done.exit_code == 0, done.output
    assert {path.stem for path in (tmp_path / "site" / "tracks").iterdir()} == {"vision", "llm"}
    assert "note: reference results: 3 jobs" in done.stderr
    assert run("--reference", "--results", tmp_path, "--out", tmp_path / "site").exit_code == 2


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--suite", "none"], "no results of the suite 'none'"),
        (["--track", "visoin"], "did you mean 'vision'?"),
        (["--out", "."], "is no site that kdbench wrote"),
    ],
)
def test_what_is_wrong_is_said_in_a_line_with_code_2(run, tmp_path, monkeypatch, words, message):
    put(tmp_path / "results", grid({"kd": [0.5]}))
    monkeypatch.chdir(tmp_path)
    done = run("--results", "results", *words)
    assert done.exit_code == 2
    assert message in done.stderr
    assert "Traceback" not in done.output
