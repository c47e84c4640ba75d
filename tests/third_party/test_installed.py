"""A package of methods and a task that somebody else wrote: built, installed, and run beside ours."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import venv
from itertools import product
from pathlib import Path

import pytest

from kdbench.conformance.checks import CHECKS
from kdbench.registry import discover
from kdbench.scaffold.package import new_package

PACKAGE = Path(__file__).parent / "kdbench-matching"
OWN = {"vision/ttm", "vision/logit_mse"}


class Place:
    """A virtual environment of its own, in which the packages of this one can be imported."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        venv.create(folder / "venv", with_pip=False, symlinks=True)
        self.python = folder / "venv" / "bin" / "python"
        own = Path(self.output("-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip())
        # addsitedir, unlike a plain path, also follows the .pth files of what is installed for development there
        outer = sysconfig.get_path("purelib")
        (own / "outer.pth").write_text(f"import site; site.addsitedir({outer!r})\n")

    def output(self, *arguments: str | Path, cwd: Path | None = None) -> str:
        """What Python prints; fails with it unless Python succeeds."""
        done = subprocess.run(
            [self.python, *map(str, arguments)], cwd=cwd or self.folder, env=self.environment(), capture_output=True
        )
        text = done.stdout.decode() + done.stderr.decode()
        assert done.returncode == 0, text
        return done.stdout.decode()

    def environment(self) -> dict[str, str]:
        """That of the tests, without what would let it see more than what is installed in it."""
        kept = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
        return kept | {"NO_COLOR": "1"}

    def kdbench(self, *arguments: str | Path) -> str:
        return self.output("-c", "from kdbench.cli import main; main()", *arguments)

    def pytest(self, project: Path) -> int:
        """Run the tests of a project as it configures them; how many passed."""
        summary = self.output("-m", "pytest", "-p", "no:cacheprovider", cwd=project).splitlines()[-1]
        assert "failed" not in summary
        return int(re.findall(r"(\d+) passed", summary)[0])

    def install(self, project: Path) -> Path:
        """Build a wheel of a project and install it, with neither network nor dependencies that are missing."""
        copy = self.folder / "sources" / project.name
        shutil.copytree(project, copy)  # builds leave nothing where they are made
        wheels = self.folder / "wheels" / project.name
        pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
        for command in (
            [*pip, "wheel", "--quiet", "--no-build-isolation", "--no-deps", "--wheel-dir", wheels, copy],
            [*pip, "--python", self.python, "install", "--quiet", "--no-index", "--find-links", wheels, project.name],
        ):
            done = subprocess.run(command, capture_output=True, text=True)
            assert done.returncode == 0, done.stdout + done.stderr
        (wheel,) = wheels.iterdir()
        return wheel


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    made = Place(tmp_path_factory.mktemp("place"))
    made.install(PACKAGE)
    return made


def test_it_is_not_a_part_of_this_environment():
    found = discover()
    assert OWN.isdisjoint(found.methods)
    assert "vision/digits-fivelabel" not in {entry.name for entry in found.tasks()}


def test_its_methods_its_task_and_its_suite_are_found(place: Place):
    shown = json.loads(place.kdbench("methods", "--json"))
    assert shown["broken"] == []
    sources = {method["key"]: method["source"] for method in shown["methods"]}
    assert sources["vision/kd"] == "built-in"
    assert {key for key, source in sources.items() if source.endswith("(kdbench-matching 0.2.0)")} == OWN
    (task,) = json.loads(place.kdbench("tasks", "digits-fivelabel", "--json"))
    assert task["data"]["derive"]["labels"] == 5
    assert "matching" in {suite["suite"] for suite in json.loads(place.kdbench("suites", "--json"))["suites"]}
    assert "Zheng, Kaixiang and Yang, En-Hui" in place.kdbench("cite", "ttm")


def test_its_methods_run_beside_ours_and_ours_run_on_its_task(place: Place):
    assert "ttm" in place.kdbench("plan", "matching")
    suite = place.folder / "small.yaml"
    suite.write_text(
        "{name: small, scale: smoke, seeds: 1, tracking: false, tasks: [vision/digits-fivelabel, vision/digits-gap],"
        " methods: [vision/ttm, vision/logit_mse, vision/kd, vision/no_kd, vision/teacher]}"
    )
    place.kdbench("run", suite, "--results", "results")
    rows = json.loads(place.kdbench("leaderboard", "--suite", "small", "--format", "json", "--results", "results"))
    everyone = OWN | {"vision/kd", "vision/no_kd", "vision/teacher"}
    assert {(row["task"], row["method"]) for row in rows} == set(
        product(("vision/digits-fivelabel", "vision/digits-gap"), everyone)
    )
    outcomes = [json.loads(path.read_text()) for path in (place.folder / "results" / "jobs").glob("*/outcome.json")]
    assert len(outcomes) == 10
    assert {outcome["status"] for outcome in outcomes} == {"ok"}
    assert sum("logit_mse" in outcome["extra"] for outcome in outcomes) == 2


def test_its_own_tests_pass_with_the_contract_of_both_methods(place: Place):
    skipped = 2 + 1  # no GPU, and one method cannot go on from a checkpoint
    assert place.pytest(place.folder / "sources" / PACKAGE.name) >= 4 + 2 * len(CHECKS) - skipped


def test_a_package_as_kdbench_new_writes_it_passes_its_tests_once_it_is_installed(place: Place, tmp_path: Path):
    new_package(discover(), "my-kd-methods", "vision", folder=tmp_path)
    place.install(tmp_path / "my-kd-methods")
    without_gpu = len(CHECKS) - 1
    assert place.pytest(tmp_path / "my-kd-methods") >= 3 + 1 + without_gpu
    assert json.loads(place.kdbench("methods", "vision/my_idea", "--json"))[0]["source"].startswith("entry point")
