"""``kdbench export`` and ``kdbench import`` as people type them, and what imported jobs are to the other verbs."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from kdbench.cli import make_app
from kdbench.store import duck, export, membership, spool
from tests.helpers.outcomes import grid, make_job, make_outcome, put
from tests.toytrack import EXTENSION, write_method

README = Path(__file__).parents[2] / "README.md"
KDBENCH = [sys.executable, "-c", "from kdbench.cli import main; main()"]


def call(*arguments: object) -> Result:
    return CliRunner().invoke(make_app(), [str(argument) for argument in arguments])


@pytest.fixture
def theirs(tmp_path: Path) -> Path:
    put(tmp_path / "theirs", grid({"no_kd": [0.4, 0.5], "kd": [0.6, 0.7]}), log="one\n")
    put(tmp_path / "theirs", make_outcome(make_job("x\x1b[31m", 0), status="oom"), log="two\n")
    return tmp_path / "theirs"


@pytest.mark.parametrize("format", export.FORMATS)
def test_there_and_back(theirs: Path, tmp_path: Path, format: str) -> None:
    out, ours = tmp_path / "out", tmp_path / "ours"
    done = call("export", out, "--format", format, "--results", theirs)
    assert done.exit_code == 0, done.output
    assert f"jobs.{format}" in done.stdout
    assert f"{out}: {len(export.TABLES)} files and {export.MANIFEST}" in done.stdout
    planned = call("import", out, "--dry-run", "--results", ours)
    assert planned.stdout.splitlines() == ["5 jobs would be imported, 0 known already"]
    assert not ours.exists()
    done = call("import", out, "--results", ours)
    assert done.exit_code == 0, done.output
    assert done.stdout.splitlines() == ["5 jobs imported, 0 known already"]
    assert call("import", out, "--results", ours).stdout == "0 jobs imported, 5 known already\n"
    boards = [call("leaderboard", "--format", "json", "--results", results).stdout for results in (theirs, ours)]
    assert boards[0] == boards[1]
    assert len(json.loads(boards[0])) == 3


def test_selections(theirs: Path, tmp_path: Path) -> None:
    put(theirs, make_outcome(make_job("sft", task="llm/toy")))
    assert call("export", tmp_path / "a", "--track", "llm", "--results", theirs).exit_code == 0
    assert call("import", tmp_path / "a", "--results", tmp_path / "ours").stdout.startswith("1 job imported,")
    wrong = call("export", tmp_path / "b", "--task", "toi", "--results", theirs)
    assert wrong.exit_code == 2
    assert "did you mean" in wrong.stderr
    assert not (tmp_path / "b").exists()


def test_differences_are_listed_and_ours_are_kept(theirs: Path, tmp_path: Path) -> None:
    ours = tmp_path / "ours"
    put(ours, grid({"kd": [0.6, 0.75], "no_kd": [None]}))
    done = call("import", theirs, "--results", ours)
    assert done.exit_code == 0, done.output
    lines = done.stdout.splitlines()
    assert lines[0] == "3 jobs imported (2 new, 1 that failed here), 2 known already"
    assert lines[1] == "equal work, other numbers, in 1 job; those from here are kept:"
    cells = lines[3].split()
    assert cells[1:] == ["vision/toy@cpu", "kd", "1", "top1", "0.75", "0.7"]
    data = json.loads(call("import", theirs, "--json", "--results", ours).stdout)
    assert (data["new"], data["better"], len(data["known"])) == ([], [], 5)
    first = data["differences"][0]
    assert (first["metric"], first["ours"], first["theirs"]) == ("top1", 0.75, 0.7)


def test_many_differences_are_counted(tmp_path: Path) -> None:
    put(tmp_path / "theirs", grid({"kd": [0.5 + seed / 100 for seed in range(15)]}))
    put(tmp_path / "ours", grid({"kd": [0.1] * 15}))
    lines = call("import", tmp_path / "theirs", "--results", tmp_path / "ours").stdout.splitlines()
    assert lines[-1] == "... and 10 more (--json lists all)"


@pytest.mark.parametrize("what", ["none", "text", "database", "export", "outcome"])
def test_bad_input_is_one_line_and_changes_nothing(theirs: Path, tmp_path: Path, what: str) -> None:
    source = tmp_path / what
    if what == "text":
        source.write_text("\x1b[31mhello")
    elif what == "database":
        duck.sync(theirs)
        source.write_bytes(duck.published_path(theirs).read_bytes()[:9000])
    elif what == "export":
        call("export", source, "--results", theirs)
        (source / "metrics.parquet").write_bytes(b"PAR1")
    elif what == "outcome":
        shutil.copytree(theirs, source)
        next(source.glob("jobs/*/outcome.json")).write_text("{")
    done = call("import", source, "--results", tmp_path / "ours")
    assert done.exit_code == 2, done.output
    assert len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith(f"error: {source}")
    assert "Traceback" not in done.output
    assert not (tmp_path / "ours").exists()


def test_imported_jobs_are_jobs_like_any_other(theirs: Path, tmp_path: Path) -> None:
    ours = tmp_path / "ours"
    duck.sync(theirs)
    call("import", duck.published_path(theirs), "--results", ours)
    (id,) = (id for id, status in spool.statuses(ours).items() if status == "oom")
    shown = call("show", id, "--results", ours)
    assert f"from {duck.published_path(theirs)}" in shown.stdout
    assert "\x1b" not in shown.stdout
    assert json.loads(call("show", id, "--json", "--results", ours).stdout)["provenance"]["imported"]
    assert call("gc", "--older-than", "0.01s", "--results", ours, "--cache", tmp_path / "cache").exit_code == 0
    assert len(spool.statuses(ours)) == 5
    status = [call("status", "--results", results) for results in (theirs, ours)]
    assert status[0].exit_code == status[1].exit_code
    assert status[0].stderr.replace(str(theirs), str(ours)) == status[1].stderr
    assert "5 outcomes" in call("rebuild", "--results", ours).stdout
    query = "SELECT count(*), count(provenance ->> '$.imported.at') FROM jobs"
    assert call("sql", query, "-f", "csv", "--results", ours).stdout.splitlines()[1] == "5,5"
    compared = [call("compare", "kd", "no_kd", "--json", "--results", results).stdout for results in (theirs, ours)]
    assert compared[0].replace(str(theirs), str(ours)) == compared[1]


def test_the_readme_shows_what_works(theirs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    membership.add(theirs, "quickstart", spool.statuses(theirs), None)
    theirs.rename(tmp_path / "results")
    lines = re.findall(r"^\$ kdbench ((?:export|import) [^#\n]*)", README.read_text(), re.MULTILINE)
    there, back = map(shlex.split, lines)
    monkeypatch.chdir(tmp_path)
    assert call(*there).exit_code == 0
    assert (tmp_path / "exported" / "jobs.parquet").exists()
    (tmp_path / "results").rename(tmp_path / "gone")
    assert call(*back).stdout.splitlines() == ["5 jobs imported, 0 known already", "suites: quickstart"]


def test_a_run_does_not_repeat_what_was_imported(tmp_path: Path) -> None:
    """Two machines with the same suite: the second takes over the first one's results and does only what is left."""
    write_method(tmp_path / "m", "plain")
    for name, seeds in (("one", 1), ("two", 2)):
        (tmp_path / name).mkdir()
        suite = f"name: shared\ntasks: [toy/bare@smoke]\nmethods: [plain]\nseeds: {seeds}\ntracking: false\n"
        (tmp_path / name / "s.yaml").write_text(suite)

    def go(machine: str, *words: object) -> subprocess.CompletedProcess[str]:
        command = [*KDBENCH, *map(str, words)]
        done = subprocess.run(command, cwd=tmp_path / machine, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 0, done.stderr
        return done

    plugins = ("--plugin", EXTENSION, "--plugin", tmp_path / "m")
    go("one", "run", "s.yaml", *plugins)
    go("one", "export", "out")
    go("two", "import", tmp_path / "one" / "out")
    done = go("two", "run", "s.yaml", *plugins)
    assert "shared: 2 jobs: 2 ok (1 of them now)" in done.stdout
    board = json.loads(go("two", "leaderboard", "--suite", "shared", "-f", "json").stdout)
    assert [row["n"] for row in board] == [2]
