"""Suites: shorthand, extension, and every error with the place of the file that wrote the value."""

from __future__ import annotations

from pathlib import Path

import pytest

from kdbench.errors import UsageError
from kdbench.registry import Registry
from kdbench.suite import load_suite, parse_seeds, resolve_suite, suite_of

MINIMAL = {"tasks": ["toy/line"], "methods": ["plain"]}


def write(folder: Path, **files: str) -> None:
    for name, text in files.items():
        (folder / f"{name}.yaml").write_text(text)


def problems(folder: Path, name: str) -> list[str]:
    with pytest.raises(UsageError) as caught:
        load_suite(folder / f"{name}.yaml")
    return [str(problem).replace(f"{folder}/", "") for problem in caught.value.problems]


# --- form -------------------------------------------------------------------------------------------------------------


def test_defaults_and_shorthand(tmp_path):
    write(
        tmp_path, **{"my suite": "tasks: [toy/line@smoke, {task: bare, scale: cpu}]\nmethods: [plain]\nkeep: model\n"}
    )
    suite = load_suite(tmp_path / "my suite.yaml")
    assert suite.name == "my-suite"
    assert [(t.task, t.scale) for t in suite.tasks] == [("toy/line", "smoke"), ("bare", "cpu")]
    assert suite.methods[0].method == "plain"
    assert suite.seeds == [0, 1, 2, 3, 4]
    assert suite.keep == ["model"]
    assert suite.executor.name == "local"
    assert suite.tracking_uri(Path("/r")) == "sqlite:////r/mlflow.db"


@pytest.mark.parametrize(("given", "seeds"), [(3, [0, 1, 2]), ([7, 1], [7, 1])])
def test_seeds_are_a_number_or_a_list(given, seeds):
    assert suite_of({**MINIMAL, "seeds": given}).seeds == seeds


def test_quantities_have_units():
    resources = {"memory": "4GiB", "gpus": 0.25, "gpu_memory": "10 GB"}
    suite = suite_of({**MINIMAL, "resources": resources, "timeout": "1h30m"})
    assert suite.resources.gpu_memory == 10**10
    assert suite.resources.memory == 4 * 2**30
    assert suite.resources.gpus == 0.25
    assert suite.timeout == 5400


@pytest.mark.parametrize(
    ("given", "uri"),
    [
        (False, None),
        ({"mlflow": False}, None),
        (True, "sqlite:////r/mlflow.db"),
        ("http://host:5000", "http://host:5000"),
        ({"mlflow": "http://host:5000"}, "http://host:5000"),
    ],
)
def test_tracking(given, uri):
    assert suite_of({**MINIMAL, "tracking": given}).tracking_uri(Path("/r")) == uri


def test_an_executor_has_options_of_its_own():
    suite = suite_of({**MINIMAL, "executor": {"name": "local", "workers": 2}})
    assert (suite.executor.name, suite.executor.options) == ("local", {"workers": 2})
    assert suite_of({**MINIMAL, "executor": "ray"}).executor.name == "ray"


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("sedes: 3", "3:1: unknown key 'sedes' (did you mean 'seeds'?)"),
        ("seeds: three", "3:8: 'seeds': a number of seeds such as 5, or a list such as [0, 1, 2], was expected, but "),
        ("seeds: 0", "3:8: 'seeds': the number of seeds must be at least 1 and at most 10,000, but is 0"),
        ("seeds: []", "3:8: 'seeds': the list is empty"),
        ("seeds: true", "3:8: 'seeds': a number of seeds"),
        ("seeds: [0, -1]", "3:12: 'seeds[1]' must be at least 0 and below 9223372036854775808, but is the number -1"),
        ("seeds: [0, 1.5]", "3:12: 'seeds[1]' must be a whole number, but is the number 1.5"),
        ("scale: huge", "3:8: 'scale' must be 'smoke', 'quick', 'cpu', 'nightly' or 'paper', but is the text 'huge'"),
        ("budget: {steps: many}", "3:17: 'budget.steps' must be a number, but is the text 'many'"),
        ("budget: {steps: 0}", "3:17: 'budget.steps' must be above 0, but is the number 0"),
        ("budget: {steps: .inf}", "3:17: 'budget.steps' must be a finite number, but is the number inf"),
        ("budget: 200", "3:9: 'budget' must be a mapping of keys to values, but is the number 200"),
        ("resources: {memory: 4GX}", "3:21: 'resources.memory': 'GX' in '4GX' is not a unit of bytes; expected"),
        ("resources: {cpus: '1'}", "3:19: 'resources.cpus' must be a number, but is the text '1' (write the number"),
        (
            "resources: {gpus: 1.5}",
            "3:19: 'resources.gpus': more than one GPU is a whole number of them, but this is 1.5",
        ),
        ("resources: {gpu_memory: 0}", "3:25: 'resources.gpu_memory': a size is above 0 bytes, but this is 0"),
        ("resources: {gpu: 1}", "3:13: unknown key 'gpu' in 'resources' (did you mean 'gpus'"),
        ("timeout: 10 moons", "3:10: 'timeout': 'moons' in '10 moons' is not a unit of time; expected"),
        ("keep: modle", "3:7: 'keep' must be 'model', but is the text 'modle' (did you mean 'model'?)"),
        ("tracking: {mlflw: true}", "3:12: unknown key 'mlflw' in 'tracking' (did you mean 'mlflow'?)"),
        ("name: a/b", "3:7: 'name' must be text that matches"),
        ("name: 3", "3:7: 'name' must be text, but is the number 3"),
    ],
)
def test_a_wrong_value_is_named_with_its_place(tmp_path, line, expected):
    write(tmp_path, a=f"tasks: [toy/line]\nmethods: [plain]\n{line}\n")
    (problem,) = problems(tmp_path, "a")
    assert problem.startswith(f"a.yaml:{expected}")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("methods: [plain]", ["1:1: the key 'tasks' is missing; a list was expected"]),
        (
            "tasks: []\nmethods: plain",
            ["1:8: 'tasks' must be at least 1 item", "2:10: 'methods' must be a list, but is"],
        ),
        (
            "tasks: [3]\nmethods: [{params: {}}]",
            ["1:9: 'tasks[0]' must be a mapping", "2:11: the key 'method' is missing"],
        ),
        ("tasks: [line@tiny]\nmethods: [plain]", ["1:9: 'tasks[0].scale' must be 'smoke', 'quick'"]),
        (
            "tasks: [{task: line@smoke, scale: cpu}]\nmethods: [plain]",
            ["1:9: 'tasks[0]': the scale is given twice: 'smoke' after the '@' and 'cpu'"],
        ),
        (
            "tasks: [line]\nmethods: [{method: a, grid: {x: 1, y: []}}]",
            [
                "2:33: 'methods[0].grid.x' must be a list, but is the number 1",
                "2:39: 'methods[0].grid.y' must be at least 1",
            ],
        ),
        (
            "tasks: [line]\nmethods: [{method: a, params: {x: 1}, grid: {x: [1]}}]",
            ["2:11: 'methods[0]': x cannot stand both in params and in grid"],
        ),
    ],
)
def test_wrong_entries(tmp_path, text, expected):
    write(tmp_path, a=text)
    found = problems(tmp_path, "a")
    assert len(found) == len(expected)
    assert all(line.startswith(f"a.yaml:{start}") for line, start in zip(found, expected, strict=True)), found


# --- extension --------------------------------------------------------------------------------------------------------


def test_later_suites_win_mappings_merge_and_lists_replace(tmp_path):
    (tmp_path / "sub").mkdir()
    write(
        tmp_path, one="name: one\ndescription: first\ntasks: [line]\nmethods: [plain]\nbudget: {steps: 1, samples: 2}\n"
    )
    write(tmp_path / "sub", two="extends: ../one.yaml\nmethods: [tuned]\nbudget: {steps: 3}\nseeds: 2\n")
    write(tmp_path, top="extends: [one.yaml, sub/two.yaml]\nseeds: [7]\n")
    suite = load_suite(tmp_path / "top.yaml")
    assert (suite.name, suite.description) == ("top", "")
    assert [m.method for m in suite.methods] == ["tuned"]
    assert suite.budget == {"steps": 3, "samples": 2}
    assert suite.seeds == [7]
    assert suite.place("budget", "steps") == f"{tmp_path}/sub/two.yaml:3:17"
    assert suite.place("budget", "samples") == f"{tmp_path}/one.yaml:5:29"
    assert suite.place("seeds") == f"{tmp_path}/top.yaml:2:8"


def test_a_plus_appends_to_what_is_inherited(tmp_path):
    write(tmp_path, base="tasks: [line]\nmethods: [plain]\n", more="methods+: [lineal]\ntasks+: [bare]\n")
    write(tmp_path, top="extends: [base.yaml, more.yaml]\nmethods+:\n  - tuned\n")
    suite = load_suite(tmp_path / "top.yaml")
    assert [m.method for m in suite.methods] == ["plain", "lineal", "tuned"]
    assert [t.task for t in suite.tasks] == ["line", "bare"]
    assert suite.place("methods", 1) == f"{tmp_path}/more.yaml:1:12"
    assert suite.place("methods", 2) == f"{tmp_path}/top.yaml:3:5"


def test_a_plus_with_nothing_to_append_to_is_the_list(tmp_path):
    write(tmp_path, a="tasks+: [line]\nmethods+: [plain]\n")
    assert [t.task for t in load_suite(tmp_path / "a.yaml").tasks] == ["line"]


def test_replacing_wins_over_what_was_appended_before(tmp_path):
    write(tmp_path, base="tasks: [line]\nmethods+: [plain]\n", top="extends: base.yaml\nmethods: [tuned]\n")
    assert [m.method for m in load_suite(tmp_path / "top.yaml").methods] == ["tuned"]


def test_another_executor_inherits_no_options(tmp_path):
    base = "tasks: [line]\nmethods: [plain]\nexecutor: {name: local, workers: 2}\n"
    write(tmp_path, base=base, same="extends: base.yaml\nexecutor: {name: local, x: 1}\n")
    write(tmp_path, other="extends: base.yaml\nexecutor: {name: ray, address: auto}\n")
    assert load_suite(tmp_path / "same.yaml").executor.options == {"workers": 2, "x": 1}
    assert load_suite(tmp_path / "other.yaml").executor.options == {"address": "auto"}


def test_problems_stand_in_the_file_that_wrote_them(tmp_path):
    write(tmp_path, base="tasks: [line]\nmethods:\n  - {method: kd, params: 3}\nbudget: {steps: x}\n")
    write(tmp_path, top="extends: base.yaml\nmethods+: [{methd: a}]\n")
    assert [line.split(" ")[0] for line in problems(tmp_path, "top")] == [
        "base.yaml:3:26:",
        "base.yaml:4:17:",
        "top.yaml:2:13:",
    ]


def test_a_circle_is_reported_with_its_chain(tmp_path):
    write(tmp_path, a="extends: b.yaml\n", b="extends: c.yaml\n", c="extends: [b.yaml]\n", self="extends: self.yaml\n")
    assert problems(tmp_path, "a") == [
        "c.yaml:1:11: suites extend each other in a circle: b.yaml -> c.yaml -> b.yaml (remove one 'extends')"
    ]
    assert "self.yaml -> self.yaml" in problems(tmp_path, "self")[0]


def test_a_diamond_is_no_circle(tmp_path):
    write(tmp_path, base="tasks: [line]\nmethods: [plain]\n", left="extends: base.yaml\n", right="extends: base.yaml\n")
    write(tmp_path, top="extends: [left.yaml, right.yaml]\n")
    assert len(load_suite(tmp_path / "top.yaml").methods) == 1


def test_every_broken_parent_is_reported(tmp_path):
    write(tmp_path, base="tasks: [\n", bass="", top="extends: [bse.yaml, base.yaml, 3, bass.yaml]\n")
    found = problems(tmp_path, "top")
    assert [line.split(" ")[0] for line in found] == [
        "top.yaml:1:11:",
        "base.yaml:2:1:",
        "top.yaml:1:32:",
        "bass.yaml:1:1:",
    ]
    assert "there is no file 'bse.yaml' to extend (did you mean 'base.yaml'" in found[0]


def test_one_file_cannot_replace_and_append(tmp_path):
    write(tmp_path, a="tasks: [line]\nmethods: [plain]\nmethods+: [tuned]\n", b="tasks: [line]\nmethods+: plain\n")
    assert "a.yaml:3:1: 'methods' and 'methods+' stand in one file" in problems(tmp_path, "a")[0]
    assert "b.yaml:2:11: 'methods+' must be a list, but is the text 'plain'" in problems(tmp_path, "b")[0]


def test_extension_that_multiplies_is_refused(tmp_path):
    write(tmp_path, s0=f"methods+: [{', '.join(['plain'] * 100)}]\ntasks: [line]\n")
    for level in range(1, 15):
        write(tmp_path, **{f"s{level}": f"extends: [s{level - 1}.yaml, s{level - 1}.yaml]\n"})
    assert "more than 10,000 entries in 'methods+'" in problems(tmp_path, "s14")[0]


# --- names ------------------------------------------------------------------------------------------------------------


class Named(Registry):
    def suites(self):
        return {"quickstart": Path("/suites/quickstart.yaml"), "vision": Path("/suites/vision.yaml")}


def test_suites_are_found_by_name_or_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert resolve_suite("quickstart", Named()) == Path("/suites/quickstart.yaml")
    with pytest.raises(UsageError, match=r"no suite has the name 'quikstart'.*did you mean 'quickstart'"):
        resolve_suite("quikstart", Named())
    (tmp_path / "vision").mkdir()  # a folder hides no suite, a file does
    assert resolve_suite("vision", Named()) == Path("/suites/vision.yaml")
    (tmp_path / "quickstart").write_text("")
    assert resolve_suite("quickstart", Named()) == Path("quickstart")
    assert resolve_suite("none/x.yaml", Named()) == Path("none/x.yaml")


def test_seeds_of_a_command_line():
    assert parse_seeds("3") == [0, 1, 2]
    assert parse_seeds("0, 1,7") == [0, 1, 7]
    assert parse_seeds("7,") == [7]
    for bad in ("", "x", "1.5", "-1", "0", "1,,2", ","):
        with pytest.raises(UsageError) as caught:
            parse_seeds(bad)
        assert caught.value.problems[0].place == "--seeds"
