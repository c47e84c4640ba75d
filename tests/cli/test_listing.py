"""``kdbench methods``, ``tasks``, ``tracks`` and ``suites``: complete, quick, and calm about broken plugins."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from kdbench import __version__
from kdbench.cli import make_app
from kdbench.cli.common import ExitCode
from tests.helpers.outcomes import grid, put
from tests.helpers.plugins import write, write_method


@pytest.fixture(autouse=True)
def own_folders(tmp_path, monkeypatch):
    monkeypatch.setenv("KDBENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("KDBENCH_PLUGINS", str(tmp_path / "drop"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "drop").mkdir()


def kdbench(*arguments: str):
    return CliRunner().invoke(make_app(), list(arguments))


def test_methods_are_listed_with_what_is_broken_and_why(tmp_path):
    write_method(tmp_path / "drop", "sound")
    write_method(tmp_path / "drop", "ill", old="def train", new="def trian")
    result = kdbench("methods")
    assert result.exit_code == ExitCode.OK
    assert "vision/sound" in result.stdout
    assert "vision/teacher" in result.stdout
    assert "drop/ill.py:13:1: trian is no hook of kdbench (did you mean 'train'" in result.stdout
    data = json.loads(kdbench("methods", "--json").stdout)
    assert "vision/sound" in {method["key"] for method in data["methods"]}
    assert [item["reason"] for item in data["broken"]] == ["trian is no hook of kdbench"]


def test_methods_are_chosen_by_track_tag_and_words(tmp_path):
    write_method(tmp_path / "drop", "zeta", old='tags=["test"]', new='tags=["test", "odd"]')
    write_method(tmp_path / "drop", "omega", "llm", old='tags=["test"]', new='tags=["test", "odd"]')

    def keys(*options: str) -> set[str]:
        return {method["key"] for method in json.loads(kdbench("methods", "--json", *options).stdout)["methods"]}

    assert keys("--tag", "odd") == {"vision/zeta", "llm/omega"}
    assert keys("--tag", "odd", "--track", "llm") == {"llm/omega"}
    assert keys("--tag", "odd", "--tag", "nothing") == set()
    assert keys("--search", "METHOD called zeta") == {"vision/zeta"}
    assert all(key.startswith("vision/") for key in keys("--track", "vision"))


@pytest.mark.parametrize("arguments", [("methods", "mine"), ("methods", "show", "vision/mine")])
def test_a_method_is_shown_in_full(tmp_path, arguments):
    write_method(tmp_path / "drop", "mine")
    text = kdbench(*arguments).stdout
    for part in ("vision/mine: A method called mine", "drop/mine.py", "weight", ">= 0, <= 1", "vision/digits-gap"):
        assert part in text
    (data,) = json.loads(kdbench(*arguments, "--json").stdout)
    assert data["fields"][0]["bounds"] == {"ge": 0, "le": 1}


def test_a_paper_is_shown_with_the_status_of_its_claims_and_its_best_results(tmp_path):
    put(tmp_path / "results", grid({"pld": [0.5, 0.6], "kd": [0.4, 0.5]}))
    text = kdbench("methods", "show", "pld").stdout
    for part in ("NeurIPS 2025", "Classes are ranked", "variant", "vision/digits-gap", "pld is noninferior to kd"):
        assert part in text
    assert "pld is superior to pld(variant='listmle') in top1 on shapetex," in text
    assert "so far      not checked yet; kdbench claims vision/pld" in text
    assert "vision/toy@cpu  top1    0.55 " in text
    (data,) = json.loads(kdbench("methods", "show", "pld", "--json").stdout)
    assert [best["mean"] for best in data["best"]] == [pytest.approx(0.55)]
    assert data["mechanism"].startswith("Classes are ranked")


def test_without_results_nothing_is_made_or_missed(tmp_path):
    done = kdbench("methods", "show", "pld", "--results", "nowhere")
    assert (done.exit_code, done.stderr) == (ExitCode.OK, "")
    assert "best results" not in done.stdout
    assert not (tmp_path / "nowhere").exists()
    assert json.loads(kdbench("methods", "show", "pld", "--json").stdout)[0]["best"] == []


def test_results_that_cannot_be_read_are_a_warning(tmp_path):
    (outcome,) = put(tmp_path / "results", grid({"kd": [0.5]}))
    (tmp_path / "results" / "jobs" / outcome.id / "outcome.json").write_text("{")
    done = kdbench("methods", "show", "kd")
    assert done.exit_code == ExitCode.OK
    assert "warning: " in done.stderr
    assert "temperature" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("methods", "teachr"), "error: there is no method 'teachr' (did you mean 'teacher'"),
        (("methods", "show"), "error: show: show what?"),
        (("methods", "--track", "visoin"), "error: --track: there is no track 'visoin' (did you mean 'vision'?)"),
        (("methods", "--plugin", "nowhere.py"), "error: --plugin: there is no file nowhere.py"),
        (("tasks", "digits-gop"), "did you mean 'digits-gap'"),
        (("tasks", "vision/digits-gap@smoky"), "has no scale 'smoky' (did you mean 'smoke'?)"),
        (("method",), "No such command"),
        (("methods", "--jsn"), "No such option"),
    ],
)
def test_bad_input_is_one_message_and_exit_code_2(arguments, message):
    result = kdbench(*arguments)
    assert result.exit_code == ExitCode.USAGE
    assert message in result.stderr
    assert "Traceback" not in result.output


def test_tasks_are_listed_and_shown_at_a_scale():
    text = kdbench("tasks", "--track", "vision").stdout
    assert "vision/digits-gap" in text
    assert "llm/" not in text
    listed = json.loads(kdbench("tasks", "--json").stdout)["tasks"]
    assert {"name", "title", "family", "scales", "track", "place", "requires"} == set(listed[0])
    (smoke,) = json.loads(kdbench("tasks", "digits-gap@smoke", "--json").stdout)
    (cpu,) = json.loads(kdbench("tasks", "vision/digits-gap", "--json").stdout)
    assert (smoke["scale"], cpu["scale"]) == ("smoke", "cpu")
    assert smoke["limits"]["steps"] < cpu["limits"]["steps"]
    assert "vision/digits-gap@smoke" in kdbench("tasks", "show", "digits-gap", "--scale", "smoke").stdout


def test_tracks_and_suites_are_listed():
    tracks = {row["track"]: row for row in json.loads(kdbench("tracks", "--json").stdout)["tracks"]}
    assert tracks["vision"]["tasks"] > 0
    assert tracks["llm"]["methods"] > 0
    assert "vision" in kdbench("tracks").stdout
    suites = {row["suite"]: row for row in json.loads(kdbench("suites", "--json").stdout)["suites"]}
    assert Path(suites["quickstart"]["path"]).name == "quickstart.yaml"


def test_version():
    result = kdbench("--version")
    assert (result.exit_code, result.stdout) == (ExitCode.OK, f"kdbench {__version__}\n")


# --- what is imported -------------------------------------------------------------------------------------------------

HEAVY = ("torch", "pydantic", "pandas", "numpy", "transformers", "datasets", "duckdb", "mlflow", "yaml", "rich.table")
PROBE = """
import sys
from kdbench.cli import make_app
try:
    make_app()(sys.argv[1:])
except SystemExit as end:
    code = end.code or 0
print("MODULES", code, *sys.modules, file=sys.stderr)
"""


def modules_of(*arguments: str) -> set[str]:
    found = subprocess.run(
        [sys.executable, "-c", PROBE, *arguments], capture_output=True, text=True, timeout=60, env=os.environ.copy()
    )
    marker, code, *modules = found.stderr.splitlines()[-1].split()
    assert (marker, code) == ("MODULES", "0"), found.stderr
    return set(modules)


def test_226_methods_are_listed_without_importing_anything_heavy(tmp_path):
    for number in range(226):
        write_method(tmp_path / "drop", f"method_{number:03}")
    for _ in ("with an index that is made", "with the index"):
        modules = modules_of("methods", "--search", "method_225")
        assert not set(HEAVY) & modules
        assert not [name for name in modules if name.startswith(("kdbench_plugin", "kdbench_methods."))]
    assert "kdbench.registry" in modules


def test_help_imports_nothing_heavy():
    modules = modules_of("--help")
    assert not {*HEAVY, "kdbench.registry", "pluggy"} & modules


def test_a_closed_pipe_is_no_traceback():
    command = [sys.executable, "-c", "from kdbench.cli import main; main()", "methods", "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(timeout=60) == ExitCode.PIPE_CLOSED


def test_plugins_given_by_option_are_listed(tmp_path):
    path = write_method(tmp_path / "elsewhere", "given")
    broken = write(tmp_path / "elsewhere" / "bad.py", "import\n")
    result = kdbench("methods", "--plugin", str(path), "--plugin", str(broken))
    assert result.exit_code == ExitCode.OK
    assert "vision/given" in result.stdout
    assert "elsewhere/bad.py:1:7: not valid Python" in result.stdout
