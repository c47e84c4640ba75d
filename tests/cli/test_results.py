"""The verbs that read results, as people type them."""

from __future__ import annotations

import csv
import io
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from kdbench.cli import make_app
from kdbench.leaderboard.selection import Selection
from kdbench.store import export, spool
from tests.helpers.outcomes import grid, make_job, make_outcome, put
from tests.helpers.reference import come_with


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("results")
    put(folder, grid({"no_kd": [0.8, 0.81, 0.79], "kd": [0.9, 0.91, 0.89], "teacher": [0.95] * 3}), log="one\ntwo\n")
    put(folder, make_outcome(make_job("bad\x1b[31m", 0), status="oom"))
    return folder


def call(results: Path, *arguments: str) -> Result:
    return CliRunner().invoke(make_app(), [*arguments, "--results", str(results)])


def test_leaderboard(results: Path) -> None:
    done = call(results, "leaderboard")
    assert done.exit_code == 0, done.output
    lines = done.stdout.splitlines()
    assert lines[0].startswith("vision/toy@cpu: top1, more is better; budget 100 steps; student seeds 0-2; ")
    assert "with one teacher (seed 0)" in lines[0]
    assert lines[2].split()[:2] == ["1", "teacher"]
    assert "1 oom" in done.stdout
    assert "\x1b" not in done.stdout


def test_leaderboard_against_a_cost_and_over_tasks(results: Path) -> None:
    done = call(results, "leaderboard", "--by", "flops")
    assert done.exit_code == 0, done.output
    assert done.stdout.splitlines()[1].split()[-2:] == ["flops", "front"]
    assert "yes (100 %)" in done.stdout
    overall = call(results, "leaderboard", "--overall")
    assert overall.exit_code == 0, overall.output
    assert overall.stdout.startswith("vision@cpu over 1 task (toy)")
    assert "1 on 1 task" in overall.stdout, "the failed job"
    assert call(results, "leaderboard", "--mix-budgets").stdout == call(results, "leaderboard").stdout


def test_rules_are_printed_under_each_board(results: Path) -> None:
    text = call(results, "leaderboard").stdout
    assert "5 % per method" in text
    assert "failed jobs: a method with a job that failed" in text


def test_the_top_of_each_table(results: Path) -> None:
    whole = call(results, "leaderboard").stdout
    cut = call(results, "leaderboard", "--top", "2").stdout
    first = [line.split()[1] for line in whole.splitlines()[2:4]]
    assert [line.split()[1] for line in cut.splitlines()[2:4]] == first
    assert not any(line.split()[1] in {"kd", "no_kd", "teacher"} for line in cut.splitlines()[4:] if line.strip())
    assert "  and 2 more methods: leave --top out\n" in cut
    assert "- and 2 more methods\n" in call(results, "leaderboard", "--top", "2", "-f", "md").stdout
    assert "more method" not in call(results, "leaderboard", "--top", "4").stdout
    for form in ("table", "md"):
        overall = call(results, "leaderboard", "--overall", "--top", "3", "-f", form).stdout
        assert "and 1 more method\n" in overall
        assert "kd" in overall


@pytest.fixture
def shipped(results: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The same results as such that come with kdbench, in a folder without any."""
    folder = come_with(monkeypatch, tmp_path / "reference")
    export.export(results, folder / "vision", "parquet", Selection())
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KDBENCH_CACHE", str(tmp_path / "cache"))
    return folder


VERBS = [
    ["leaderboard"],
    ["leaderboard", "--overall"],
    ["leaderboard", "--format", "json"],
    ["compare", "kd", "no_kd", "--json"],
    ["sql", "SELECT label, score FROM jobs ORDER BY ALL"],
]


@pytest.mark.parametrize("verb", VERBS, ids=lambda verb: " ".join(verb[:2]))
def test_reference_results_are_read_as_any_others(results: Path, shipped: Path, verb: list[str]) -> None:
    first, second = (CliRunner().invoke(make_app(), [*verb, "--reference"]) for _ in range(2))
    assert first.exit_code == 0, first.output
    if "compare" not in verb:  # examples stay behind
        assert first.stdout == call(results, *verb).stdout
    assert second.stdout == first.stdout
    note = "note: reference results: 10 jobs, commit abc123, until 2026-01-02; "
    assert first.stderr.splitlines()[0] == "note: unpacking 10 reference results, once"
    assert [line.startswith(note) for line in second.stderr.splitlines()] == [True]
    assert not Path("results").exists()


def test_a_reference_job_is_shown(shipped: Path) -> None:
    done = CliRunner().invoke(make_app(), ["show", make_job("kd", 1).id[:10], "--reference"])
    assert done.exit_code == 0, done.output
    assert "vision/kd" in done.stdout
    assert f"from {shipped / 'vision'}" in done.stdout


@pytest.mark.parametrize("verb", [*VERBS, ["show", "abc"]], ids=lambda verb: " ".join(verb[:2]))
def test_reference_results_and_a_folder_are_too_much(results: Path, shipped: Path, verb: list[str]) -> None:
    done = call(results, *verb, "--reference")
    assert (done.exit_code, done.stdout) == (2, "")
    assert done.stderr == "error: --reference: --results names a folder, and --reference none (leave one out)\n"


def test_reference_results_that_are_not_there_or_damaged_are_one_line(shipped: Path) -> None:
    (shipped / "vision" / "costs.parquet").write_bytes(b"PAR1")
    done = CliRunner().invoke(make_app(), ["leaderboard", "--reference"])
    assert done.exit_code == 2
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert line.startswith("error: reference/vision/costs.parquet: is not the file that was exported")
    shutil.rmtree(shipped)
    done = CliRunner().invoke(make_app(), ["leaderboard", "--reference"])
    assert done.exit_code == 2
    assert "--reference: no reference results come with this installation" in done.stderr
    assert "Traceback" not in done.output


def test_leaderboard_for_programs(results: Path, tmp_path: Path) -> None:
    import pandas as pd

    rows = json.loads(call(results, "leaderboard", "--format", "json").stdout)
    read = list(csv.DictReader(io.StringIO(call(results, "leaderboard", "-f", "csv", "--task", "toy").stdout)))
    assert [row["label"] for row in rows] == [row["label"] for row in read]
    assert float(read[0]["mean"]) == rows[0]["mean"] == pytest.approx(0.95)
    assert call(results, "leaderboard", "-o", str(tmp_path / "x.parquet")).exit_code == 0
    frame = pd.read_parquet(tmp_path / "x.parquet")
    assert list(frame["label"]) == [row["label"] for row in rows]
    assert call(results, "leaderboard", "-o", str(tmp_path / "x.md")).exit_code == 0
    assert "| rank | method |" in (tmp_path / "x.md").read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["leaderboard", "--task", "vision/toi"], "did you mean 'vision/toy'"),
        (["leaderboard", "--metric", "top2"], "did you mean 'top1'"),
        (["leaderboard", "--format", "parquet"], "add -o FILE"),
        (["leaderboard", "--by", "train_second"], "did you mean 'train_seconds'"),
        (["leaderboard", "--overall", "--by", "flops"], "leave --overall out"),
        (["leaderboard", "--overall", "--mix-budgets"], "one budget of each"),
        (["leaderboard", "--top", "2", "-f", "csv"], "csv has all rows"),
        (["leaderboard", "-f", "csv", "-o", "/nowhere/at/all.csv"], "cannot be written"),
        (["compare", "kd", "kdd"], "did you mean 'kd'"),
        (["sql", "COPY jobs TO 'x.csv'"], "read-only"),
        (["show", "nothing"], "no job has the id"),
        (["logs", ""], "give more of it"),
    ],
)
def test_mistakes_are_one_line_and_exit_2(results: Path, arguments: list[str], message: str) -> None:
    done = call(results, *arguments)
    assert done.exit_code == 2
    assert message in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


@pytest.mark.parametrize("verb", [["leaderboard"], ["sql", "SELECT 1"], ["compare", "a", "b"], ["rebuild"]])
def test_no_results(tmp_path: Path, verb: list[str]) -> None:
    done = call(tmp_path / "none", *verb)
    assert done.exit_code == 2
    assert "kdbench run" in done.stderr
    assert not (tmp_path / "none").exists()


def test_compare(results: Path) -> None:
    done = call(results, "compare", "kd", "no_kd")
    assert done.exit_code == 0
    assert "+0.1" in done.stdout
    (item,) = json.loads(call(results, "compare", "kd", "no_kd", "--json").stdout)
    assert item["seeds"]["mean"] == pytest.approx(0.1)
    assert item["seeds"]["p"] == 0
    assert item["examples"] is None
    assert (item["separated"], item["more_seeds"]) == (True, 0)
    assert "3 common seeds separate the two" in done.stdout


def test_sql_formats(results: Path, tmp_path: Path) -> None:
    query = "SELECT label, score, finished_at, params FROM jobs WHERE label = 'kd' ORDER BY seed LIMIT 1"
    assert "kd" in call(results, "sql", query).stdout
    (row,) = json.loads(call(results, "sql", query, "-f", "json").stdout)
    assert row["label"] == "kd"
    assert row["finished_at"] == "2026-01-02T03:05:05"
    assert call(results, "sql", "SELECT 'NaN'::DOUBLE AS x, NULL AS y", "-f", "json").stdout.split() == [
        "[", "{", '"x":', "null,", '"y":', "null", "}", "]",
    ]  # fmt: skip
    assert call(results, "sql", query, "-f", "csv").stdout.startswith("label,score,finished_at,params\nkd,0.9,2026")
    assert "| label | score |" in call(results, "sql", query, "-f", "md").stdout
    assert call(results, "sql", "SELECT 1 AS a WHERE false", "-o", str(tmp_path / "empty.parquet")).exit_code == 0


def test_show_and_logs(results: Path) -> None:
    id = make_job("kd", 1).id
    done = call(results, "show", id[:10])
    assert "vision/kd" in done.stdout
    assert "0.91" in done.stdout
    assert json.loads(call(results, "show", id, "--json").stdout)["id"] == id
    assert call(results, "logs", id).stdout == "one\ntwo\n"
    assert call(results, "logs", id, "--tail", "1").stdout == "two\n"
    failed = call(results, "show", make_job("bad\x1b[31m", 0).id)
    assert "RuntimeError: planted" in failed.stdout
    assert "\x1b" not in failed.stdout


def test_job_without_outcome_or_log(tmp_path: Path) -> None:
    spool.job_folder(tmp_path, "abc").mkdir(parents=True)
    assert "no outcome yet" in call(tmp_path, "show", "a").stdout
    assert "wrote no log" in call(tmp_path, "logs", "a").stderr


def test_reading_imports_neither_torch_nor_mlflow(results: Path) -> None:
    code = (
        "import sys\nfrom kdbench.cli import make_app\n"
        "for verb in (['leaderboard'], ['sql', 'SELECT 1']):\n"
        f"    make_app()([*verb, '--results', {str(results)!r}], standalone_mode=False)\n"
        "print(sorted({'torch', 'mlflow', 'transformers', 'numba', 'pandas'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
