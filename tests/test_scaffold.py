"""What ``kdbench new`` writes runs, keeps the contract, passes its own tests and is formatted, as it is."""

from __future__ import annotations

import json
import subprocess
import sys
from functools import cache
from itertools import product
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from kdbench.cli import make_app
from kdbench.conformance.checks import examine
from kdbench.conformance.evidence import Evidence, smallest_task
from kdbench.conformance.subjects import subjects
from kdbench.errors import UsageError
from kdbench.plan import make_plan
from kdbench.registry import Registry, discover
from kdbench.scaffold import names
from kdbench.scaffold.method import new_method
from kdbench.scaffold.package import new_package
from kdbench.scaffold.writing import write_new
from kdbench.suite import load_suite
from kdbench.track import Track

ROOT = Path(__file__).parent.parent
TRACKS = ("vision", "llm", "decoding", "diffusion", "dllm", "reasoning_rl", "policy", "dataset_distillation")
STYLES = ("loss", "loop")
LONG = "a_name_as_long_as_the_name_of_any_method"
STRICT = "E,F,W,I,B,UP,C4,SIM,RUF,PT,RET"


@cache
def registry() -> Registry:
    return discover()


def tidy(folder: Path, *options: str) -> None:
    """Fails unless ruff is content with the Python files of a folder."""
    for verb in (("check",), ("format", "--diff")):
        command = [sys.executable, "-m", "ruff", *verb, "--no-cache", *options, "."]
        if verb[0] == "check":
            command += ["--select", STRICT]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr


def test_every_track_brings_templates():
    assert {track.name for track in registry().tracks.values() if track.templates} >= set(TRACKS)


# --- a method ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("track", TRACKS)
def test_a_new_method_keeps_the_contract(track, style, tmp_path):
    written = new_method(registry(), "my_idea", track, style=style, folder=tmp_path / "new")
    assert {path.name for path in written.files} == {"my_idea.py", "test_my_idea.py", "my_idea.yaml"}

    found, (method,) = subjects([str(tmp_path / "new" / "my_idea.py")])
    assert method.key == f"{track}/my_idea"
    results = list(examine(Evidence(found, method, smallest_task(found, method), tmp_path)))
    assert [item for item in results if item.state == "failed"] == []
    skipped = {item.check for item in results if item.state == "does not apply"} - {"cuda", "odd last batch"}
    # where a decoder, a sampler, a policy or a data set is returned, no student is
    assert skipped - {"student changes"} == ({"resumes"} if style == "loop" else set())
    assert ("student changes" in skipped) == (track not in ("vision", "llm", "reasoning_rl"))


def test_new_methods_pass_their_tests_beside_them_and_in_another_folder(tmp_path):
    for number, (track, style) in enumerate(product(TRACKS, STYLES)):
        folder, tests = tmp_path / "methods", tmp_path / "tests"
        new_method(registry(), f"idea{number}", track, style=style, folder=folder)
        new_method(registry(), f"other{number}", track, style=style, folder=folder, tests=tests)
    assert {path.name for path in tests.iterdir()} == {f"test_other{number}.py" for number in range(2 * len(TRACKS))}
    tidy(tmp_path)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "."]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert f"{2 * 2 * len(TRACKS) * 3} passed" in done.stdout, done.stdout + done.stderr


@pytest.mark.parametrize("track", TRACKS)
def test_the_suite_of_a_new_method_puts_it_beside_its_rivals(track, tmp_path):
    new_method(registry(), "my_idea", track, folder=tmp_path)
    found = discover([tmp_path / "my_idea.py"])
    plan = make_plan(load_suite(tmp_path / "my_idea.yaml"), found, tmp_path / "results")
    specs = [found.task(name, "quick") for name in {job.task for job in plan.jobs}]
    assert len(specs) == 2
    for spec in specs:
        assert {job.method for job in plan.jobs if job.task == spec.name} >= {
            f"{track}/{name}" for name in ("my_idea", spec.floor, spec.ceiling)
        }
    claims = found.method("my_idea", track).card.claims
    assert {f"{track}/{claim.reference}" for claim in claims} <= {job.method for job in plan.jobs}
    metrics = {metric.name for spec in specs for metric in spec.all_metrics()}
    assert {claim.metric for claim in claims} <= metrics


@pytest.mark.parametrize("slug", ["x", "my_idea", LONG])
@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("track", TRACKS)
def test_what_is_written_is_tidy_at_any_width(track, style, slug, tmp_path):
    new_method(registry(), slug, track, style=style, folder=tmp_path)
    tidy(tmp_path)
    tidy(tmp_path, "--config", "line-length = 120")


@pytest.mark.parametrize("style", STYLES)
def test_a_method_of_kdbench_itself_is_tidy_where_it_belongs(style, tmp_path):
    """In a copy of the repository's tree: packages are recognised by their folders."""
    methods, tests = tmp_path / "plugins" / "kdbench_methods" / "llm", tmp_path / "tests" / "methods" / "llm"
    for path in (*(ROOT / "kdbench").rglob("*.py"), *(ROOT / "plugins").rglob("__init__.py")):
        copy = tmp_path / path.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.touch()
    (tmp_path / "pyproject.toml").write_text((ROOT / "pyproject.toml").read_text())
    written = new_method(registry(), "my_idea", "llm", style=style, folder=methods, tests=tests)
    assert {path.name for path in written.files} == {"my_idea.py", "test_my_idea.py"}, "it is found without a suite"
    assert "from kdbench_methods.llm import my_idea as method" in (tests / "test_my_idea.py").read_text()
    tidy(tmp_path)
    assert "--plugin" not in " ".join(command for command, _ in written.commands)


def test_tests_do_not_go_where_only_methods_belong(tmp_path, monkeypatch):
    monkeypatch.setenv("KDBENCH_PLUGINS", str(tmp_path))
    with pytest.raises(UsageError, match="only methods belong"):
        new_method(registry(), "my_idea", "vision", folder=tmp_path / "below")
    new_method(registry(), "my_idea", "vision", folder=tmp_path, tests=tmp_path.parent / "tests")
    assert sorted(path.name for path in tmp_path.glob("*.py")) == ["my_idea.py"]
    with pytest.raises(UsageError, match="only methods belong"):
        new_method(registry(), "my_idea", "vision", folder=ROOT / "plugins" / "kdbench_methods" / "vision")


def test_a_folder_of_methods_with_their_tests_can_be_given_as_a_whole(tmp_path):
    for name in ("one", "two"):
        new_method(registry(), name, "vision", folder=tmp_path)
    found = discover([tmp_path])
    assert {"vision/one", "vision/two"} <= set(found.methods)
    assert found.broken == []


# --- names ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("My-Idea", "must be lower-case letters, digits and '_' (such as 'my_idea')"),
        ("MyIdea", "(such as 'my_idea')"),
        ("2fast", "(such as 'fast')"),
        ("../up", "(such as 'up')"),
        ("a.b", "(such as 'a_b')"),
        ("ide\u00e9", "(such as 'ide')"),
        ("_hidden", "(such as 'hidden')"),
        ("ends_", "(such as 'ends')"),
        ("", "(choose another name)"),
        ("\u2603", "(choose another name)"),
        ("lambda", "'lambda' of a method is a word of Python"),
        ("match", "'match' of a method is a word of Python"),
        ("a" * 41, f"has 41 characters; at most 40 were expected (such as '{'a' * 40}')"),
        ("kd", "there is a method vision/kd already"),
        ("json", "'json' is a module of this Python already"),
        ("torch", "'torch' is a module of this Python already"),
    ],
)
def test_names_that_cannot_be_used_are_refused_and_nothing_is_written(name, message, tmp_path):
    with pytest.raises(UsageError) as refused:
        new_method(registry(), name, "vision", folder=tmp_path)
    assert message in str(refused.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("My-Methods", "must be lower-case letters, digits and '-' (such as 'my-methods')"),
        ("kdbench", "'kdbench' is a module of this Python already"),
        ("a" * 33, "at most 32"),
        ("x/y", "(such as 'x-y')"),
    ],
)
def test_packages_have_names_that_pip_takes_and_nobody_has(name, message, tmp_path):
    with pytest.raises(UsageError) as refused:
        new_package(registry(), name, "vision", folder=tmp_path)
    assert message in str(refused.value)
    assert list(tmp_path.iterdir()) == []


def test_a_name_may_be_taken_in_another_track(tmp_path):
    names.require_method("sft", registry(), "vision")
    assert names.require_package("my-kd.methods") == "my_kd_methods"


def test_tracks_that_do_not_exist_or_have_no_templates_are_refused(tmp_path):
    with pytest.raises(UsageError, match="there is no track 'visoin'") as refused:
        new_method(registry(), "my_idea", "visoin", folder=tmp_path)
    assert "did you mean 'vision'" in str(refused.value)
    found = discover([ROOT / "tests" / "toytrack" / "extension.py"])
    for write in (new_method, new_package):
        with pytest.raises(UsageError, match="the track 'toy' has no templates") as refused:
            write(found, "idea-or-not" if write is new_package else "my_idea", "toy", folder=tmp_path)
        assert "tracks with templates: vision, llm, decoding" in str(refused.value)
    assert list(tmp_path.iterdir()) == []


# --- templates of other tracks ----------------------------------------------------------------------------------------


def other_track(folder: Path, **templates: str) -> Registry:
    found = discover()
    folder.mkdir()
    for name, text in templates.items():
        (folder / f"{name}.jinja").write_text(text)
    found.tracks["other"] = Track("other", "Other", 1, folder, "none:None", "none:None", templates=folder)
    return found


def test_a_track_of_an_extension_brings_its_own_templates(tmp_path):
    blocks = {
        "method.py": "{% extends 'kdbench/method.py.jinja' %}{% set temperature = 2 %}{% set weight = 1 %}"
        "{% block formula %}    L{% endblock %}{% block imports %}import this{% endblock %}"
        "{% block card %}    tasks=['*'],{% endblock %}{% block loss %}def distillation(): ...\n{% endblock %}"
        "{% block batch %}        {{ keep }}{{ network }}(batch){% endblock %}",
        "test.py": "{% extends 'kdbench/test.py.jinja' %}{% block tests %}\n# {{ params }}\n{% endblock %}",
        "suite.yaml": "only: {{ slug }}\n",
    }
    found = other_track(tmp_path / "templates", **blocks)
    new_method(found, "mine", "other", style="loop", folder=tmp_path)
    assert "parts = student(batch)" in (tmp_path / "mine.py").read_text()
    assert "# MineParams" in (tmp_path / "test_mine.py").read_text()
    assert yaml.safe_load((tmp_path / "mine.yaml").read_text()) == {"only": "mine"}


@pytest.mark.parametrize("text", ["{% wrong %}", "{{ unknown }}", "{% extends 'kdbench/nothing.jinja' %}"])
def test_a_template_that_is_wrong_is_an_error_of_its_track(text, tmp_path):
    found = other_track(tmp_path / "templates", **{"method.py": text})
    with pytest.raises(UsageError, match="of the track 'other' cannot be used"):
        new_method(found, "mine", "other", folder=tmp_path / "here")
    assert not (tmp_path / "here").exists()


# --- writing ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("there", ["my_idea.py", "test_my_idea.py", "my_idea.yaml"])
def test_what_is_there_is_never_overwritten(there, tmp_path):
    (tmp_path / there).write_text("precious")
    with pytest.raises(UsageError, match="is there already") as refused:
        new_method(registry(), "my_idea", "vision", folder=tmp_path)
    assert refused.value.problems[0].place == str(tmp_path / there)
    assert [path.read_text() for path in tmp_path.iterdir()] == ["precious"]


def test_folders_may_have_any_name(tmp_path):
    folder = tmp_path / 'it\'s "here" \u2603'
    new_method(registry(), "my_idea", "vision", folder=folder, tests=tmp_path)
    file = next(line for line in (tmp_path / "test_my_idea.py").read_text().splitlines() if line.startswith("FILE"))
    assert eval(file.partition("/ ")[2]) == f"{folder.name}/my_idea.py"


def test_a_dangling_link_is_something_that_is_there(tmp_path):
    (tmp_path / "a").symlink_to(tmp_path / "nowhere")
    with pytest.raises(UsageError, match="is there already"):
        write_new({tmp_path / "a": "text"})


def test_all_files_are_written_or_none(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="cannot be written"):
        write_new({tmp_path / "new" / "below" / "a": "", tmp_path / "b": "", tmp_path / "file" / "c": ""})
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


# --- a package --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("track", TRACKS)
def test_a_new_package_is_tidy_and_its_parts_fit_together(track, style, tmp_path):
    import tomllib

    new_package(registry(), "my-kd-methods", track, style=style, folder=tmp_path)
    root = tmp_path / "my-kd-methods"
    tidy(root)
    project = tomllib.loads((root / "pyproject.toml").read_text())
    assert project["project"]["entry-points"]["kdbench"] == {"my_kd_methods": "my_kd_methods"}
    assert project["tool"]["pytest"]["ini_options"]["addopts"] == [f"--kdbench-method={track}/my_idea"]
    assert not (root / "LICENSE").exists()
    assert "license" not in project["project"], "that is left to the author"
    workflow = yaml.safe_load((root / ".github" / "workflows" / "tests.yml").read_text())
    commands = [step["run"] for step in workflow["jobs"]["tests"]["steps"] if "run" in step]
    assert commands[-3:] == ["ruff check .", "ruff format --check .", "pytest"]
    suite = load_suite(root / "suites" / "my_idea.yaml")
    assert suite.name == "my_idea"


def test_a_second_method_goes_into_a_package(tmp_path):
    new_package(registry(), "my-kd-methods", "vision", folder=tmp_path)
    root = tmp_path / "my-kd-methods"
    source, tests = root / "src" / "my_kd_methods", root / "tests"
    written = new_method(registry(), "another_idea", "llm", folder=source, tests=tests)
    assert set(written.files) == {source / "another_idea.py", tests / "test_another_idea.py"}
    assert "from my_kd_methods import another_idea as method" in (tests / "test_another_idea.py").read_text()
    tidy(root)


# --- the command ------------------------------------------------------------------------------------------------------


def kdbench(*arguments: str):
    return CliRunner().invoke(make_app(), ["new", *arguments])


def test_the_command_says_what_it_wrote_and_what_to_do_next(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = kdbench("method", "my_idea", "--track", "llm", "--style", "loop")
    assert done.exit_code == 0, done.output
    assert "wrote my_idea.py" in done.stdout
    assert "kdbench test-method my_idea.py" in done.stdout
    assert "kdbench run my_idea.yaml --plugin my_idea.py" in done.stdout
    assert "task.steps()" in Path("my_idea.py").read_text()
    again = kdbench("method", "my_idea", "--track", "llm")
    assert again.exit_code == 2
    assert "error: my_idea.py: it is there already" in again.stderr

    done = kdbench("package", "my-kd-methods", "--method", "first")
    assert done.exit_code == 0, done.output
    assert "wrote my-kd-methods/src/my_kd_methods/first.py" in done.stdout
    assert "pip install -e '.[dev]'" in done.stdout


def test_commands_name_folders_with_blanks_as_a_shell_needs_them(tmp_path):
    done = kdbench("method", "my_idea", "--track", "vision", "--folder", str(tmp_path / "my folder"))
    assert f"kdbench test-method '{tmp_path}/my folder/my_idea.py'" in done.stdout


@pytest.mark.parametrize("arguments", [("method", "my_idea"), ("method", "--track", "vision"), ("package",)])
def test_what_is_needed_is_asked_for(arguments):
    assert kdbench(*arguments).exit_code == 2


def test_the_method_is_data_for_the_registry_without_being_executed(tmp_path):
    new_method(registry(), "my_idea", "vision", folder=tmp_path)
    method = discover([tmp_path / "my_idea.py"]).method("vision/my_idea")
    assert json.dumps(method.canonical({})) == json.dumps({"temperature": 4.0, "weight": 0.9})
