"""``kdbench claims`` as a person meets it: tables, JSON, mistakes, and the jobs that tell."""

from __future__ import annotations

import csv
import io
import json
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from kdbench.cli import make_app
from kdbench.leaderboard.selection import Selection
from kdbench.store import export, membership, spool
from tests.helpers.claims import compare, ran, write_paper
from tests.helpers.outcomes import put
from tests.helpers.reference import come_with
from tests.helpers.suites import registry_of
from tests.toytrack import EXTENSION

HALF = {"method": "new", "params": {"weight": 0.5}}


class Here:
    """A folder with methods, results, and the command."""

    def __init__(self, folder: Path, *claims: str) -> None:
        self.methods, self.results = folder / "methods", folder / "results"
        write_paper(self.methods, "new", *claims)
        write_paper(self.methods, "old", compare("old", "new", note="The old one was better all along."))
        write_paper(self.methods, "dull")

    def ran(self, **scores: list[float]) -> None:
        registry = registry_of(self.methods)
        for slug, values in scores.items():
            put(self.results, ran(registry, slug, values))

    @property
    def options(self) -> list[str]:
        return ["--plugin", str(EXTENSION), "--plugin", str(self.methods), "--results", str(self.results)]

    def call(self, *arguments: str) -> Result:
        return CliRunner().invoke(make_app(), ["claims", *arguments, *self.options])


@pytest.fixture
def here(tmp_path) -> Here:
    made = Here(tmp_path, compare("new", "old"), compare("new", HALF, tasks=["bare"]))
    made.ran(old=[0.50, 0.52, 0.48, 0.51, 0.49], new=[0.40, 0.43, 0.38, 0.41, 0.38])
    return made


def test_a_table_of_papers_and_one_of_what_was_tried(here):
    done = here.call("--track", "toy")
    assert done.exit_code == 0, done.output
    lines = done.stdout.splitlines()
    assert lines[0] == "2 papers with claims: 0 reproduced, 1 not reproduced, 1 undecided (0 of them without any job)"
    assert lines[2].split()[:3] == ["?", "undecided", "toy/new"]
    assert lines[3].split()[:4] == ["✗", "not", "reproduced", "toy/old"]
    assert f"kdbench claims --run toy/new --plugin {EXTENSION}" in lines[2].replace(f" --results {here.results}", "")
    tried = [line for line in lines if "toy/line@cpu" in line]
    assert ["reproduced" in line and "not reproduced" not in line for line in tried] == [True, False]
    assert "+0.100" in tried[0]
    assert "-0.100" in tried[1]
    assert "toy/bare@cpu" not in done.stdout, "nobody tried it"
    assert "about our implementations, at this scale" in lines[-1]


def test_methods_that_are_named_are_shown_in_full(here):
    done = here.call("new", "toy/old")
    assert "neither new nor new(weight=0.5) has run here" in done.stdout
    assert "toy/bare@cpu" in done.stdout
    assert "toy/old claim 1: The old one was better all along." in done.stdout
    assert "toy/new departs from its paper: fewer steps" in done.stdout


def test_claims_for_programs(here):
    data = json.loads(here.call("new", "--json").stdout)
    (paper,) = data["papers"]
    assert (data["scale"], paper["method"], paper["verdict"]) == ("cpu", "toy/new", "undecided")
    assert (paper["source"], paper["departures"]) == ("paper", ["fewer steps"])
    first, second = paper["findings"]
    assert (first["verdict"], first["n"], first["task"]) == ("reproduced", 5, "toy/line")
    assert first["low"] < first["effect"] < first["high"]
    assert (second["verdict"], second["effect"]) == ("undecided", None)
    everything = json.loads(here.call("--json").stdout)["papers"]
    assert {"toy/new", "toy/old", "llm/taid", "vision/pld"} <= {paper["method"] for paper in everything}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nwe"], "did you mean 'new'"),
        (["dull"], "the card of toy/dull makes no claims"),
        (["--scale", "huge"], "there is no scale 'huge'"),
        (["--track", "tyo"], "did you mean 'toy'"),
        (["--run"], "--run needs the names of methods"),
        (["new", "--seeds", "3"], "add --run"),
        (["new", "--run", "--seeds", "many"], "neither a number of seeds"),
        (["new", "--json", "--format", "md"], "--json prints JSON of its own form"),
        (["--summary", "--format", "parquet"], "a Parquet file needs a name"),
        (["new", "--run", "--scale", "paper"], "claim 1 cannot be checked: no task of the claim (line) has the scale"),
    ],
)
def test_mistakes_are_one_line_and_exit_2(here, arguments, message):
    done = here.call(*arguments)
    assert done.exit_code == 2, done.output
    assert message in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert not done.stdout


def test_no_results(tmp_path):
    done = Here(tmp_path, compare("new", "old")).call("new")
    assert done.exit_code == 2
    assert "kdbench run" in done.stderr


def test_run_makes_exactly_the_missing_jobs_and_then_tells(tmp_path):
    here = Here(tmp_path, compare("new", "old", tasks=["bare"]), compare("new", HALF, tasks=["bare"]))
    arguments = ["new", "--run", "--scale", "smoke", "--seeds", "2", "--workers", "1", "--no-tracking", "--json"]

    def call() -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", "from kdbench.cli import main; main()", "claims", *arguments, *here.options]
        return subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)

    done = call()
    assert done.returncode == 0, done.stderr
    assert "claims-new: 6 jobs, 6 of them run now, 0 failed, 0 left" in done.stderr
    outcomes = list(spool.iter_outcomes(here.results))
    assert sorted((one.job.label, one.job.task, one.job.scale, one.job.seed) for one in outcomes) == [
        (label, "toy/bare", "smoke", seed) for label in ("new", "new(weight=0.5)", "old") for seed in (0, 1)
    ]
    assert [suite.suite for suite in membership.every(here.results)] == ["claims-new"]
    (paper,) = json.loads(done.stdout)["papers"]
    assert [(one["n"], one["scale"], one["effect"]) for one in paper["findings"]] == [(2, "smoke", 0.0)] * 2
    assert {one["verdict"] for one in paper["findings"]} == {"undecided"}, "two seeds that agree are no test"

    page = (here.results / "leaderboards" / "claims-new.md").read_text()
    assert "toy/bare@smoke" in page

    before = spool.stamps(here.results)
    again = call()
    assert "claims-new: 6 jobs, 0 of them run now" in again.stderr
    assert again.stdout == done.stdout
    assert spool.stamps(here.results) == before


def test_jobs_that_failed_are_exit_code_1_and_the_verdicts_are_shown_nevertheless(here):
    registry = registry_of(here.methods)
    put(here.results, ran(registry, "new", [0.5], task="toy/bare"))
    put(here.results, ran(registry, "new", ["failed"], task="toy/bare", params=HALF["params"]))
    done = here.call("new", "--run", "--seeds", "1", "--no-tracking")
    assert done.exit_code == 1, done.output
    assert "claims-new: 4 jobs, 0 of them run now, 1 failed, 0 left" in done.stderr
    assert "new(weight=0.5) has no value of 1 seed (1 failed)" in done.stdout


def test_listing_imports_no_torch(here):
    here.call("new")  # the store is up to date
    code = (
        "import sys\nfrom kdbench.cli import make_app\n"
        f"make_app()(['claims', 'new', *{here.options!r}], standalone_mode=False)\n"
        "print(sorted({'torch', 'mlflow', 'transformers', 'numba', 'pandas'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


# --- the ledger, formats, and results that come with kdbench ----------------------------------------------------------


def test_a_summary_counts_papers_and_claims_by_track(here):
    done = here.call("--track", "toy", "--summary")
    assert done.exit_code == 0, done.output
    lines = done.stdout.splitlines()
    verdicts = "reproduced not reproduced undecided not run"
    assert lines[0].split() == f"track papers {verdicts} claims on tasks {verdicts}".split()
    assert lines[1].split() == ["toy", *["2", "0", "1", "1", "0"], *["3", "1", "1", "0", "1"]]
    assert len(lines) == 4
    data = json.loads(here.call("--track", "toy", "--summary", "--json").stdout)
    assert data["scale"] == "cpu"
    assert [row["what"] for row in data["ledger"]] == ["papers", "claims on tasks"]
    whole = here.call("--summary", "--format", "md").stdout.splitlines()
    assert "| toy | 2 | 0 | 1 | 1 | 0 | 3 | 1 | 1 | 0 | 1 |" in whole
    assert any(line.startswith("| all |") for line in whole)


def test_findings_come_in_the_formats_of_boards(here, tmp_path):
    rows = list(csv.DictReader(io.StringIO(here.call("new", "--format", "csv").stdout)))
    assert [(row["task"], row["verdict"], row["n"]) for row in rows] == [
        ("toy/line", "reproduced", "5"),
        ("toy/bare", "undecided", "0"),
    ]
    page = tmp_path / "claims.md"
    done = here.call("new", "--output", str(page))
    assert (done.exit_code, done.stdout) == (0, "")
    assert "| ✓ reproduced | toy/new | 1: new < old |" in page.read_text()


@pytest.fixture
def reference(here, tmp_path, monkeypatch) -> Here:
    """The same results, as such that come with kdbench; no folder is named."""
    folder = come_with(monkeypatch, tmp_path / "reference")
    export.export(here.results, folder / "toy", "parquet", Selection())
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KDBENCH_CACHE", str(tmp_path / "cache"))
    return here


def call_reference(here: Here, *arguments: str) -> Result:
    options = ["--plugin", str(EXTENSION), "--plugin", str(here.methods)]
    return CliRunner().invoke(make_app(), ["claims", *arguments, "--reference", *options])


def test_reference_results_are_judged_and_what_to_type_is_about_ones_own(reference):
    done = call_reference(reference, "new")
    assert done.exit_code == 0, done.output
    own = reference.call("new").stdout
    assert done.stdout == own.replace(f" --results {reference.results}", "")
    notes = done.stderr.splitlines()
    assert notes[0] == "note: unpacking 10 reference results, once"
    assert notes[1].startswith("note: reference results: 10 jobs, commit abc123, until 2026-01-02; all with other code")
    assert len(notes) == 2
    assert len(call_reference(reference, "new", "--json").stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["new", "--run"], "no jobs are added to the results that come with kdbench"),
        (["new", "--results", "results"], "--results names a folder, and --reference none"),
    ],
)
def test_reference_results_stand_alone(reference, arguments, message):
    done = call_reference(reference, *arguments)
    assert done.exit_code == 2, done.output
    assert done.stderr.startswith("error: --reference: ")
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not Path("cache", "reference-results").exists()
