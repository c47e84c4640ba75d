"""Plans: which jobs a suite asks for, what their ids depend on, and what a results folder already has."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from kdbench import plan
from kdbench.cache import Cache
from kdbench.errors import UsageError
from kdbench.history import module_digest
from kdbench.job import Job
from kdbench.leaderboard.stated import suite_of_claims
from kdbench.plan import make_plan
from kdbench.registry import Registry
from kdbench.resolve import open_suite
from kdbench.spec import digest
from kdbench.suite import load_suite
from tests.helpers import outcomes
from tests.helpers.claims import compare, write_paper
from tests.helpers.suites import planner, registry_of, toy_registry


@pytest.fixture(scope="module")
def registry(tmp_path_factory) -> Registry:
    return toy_registry(tmp_path_factory.mktemp("methods"))


@pytest.fixture
def planned(registry, tmp_path):
    return planner(registry, tmp_path)


def ids(found: plan.Plan) -> list[str]:
    return [job.id for job in found.jobs]


# --- jobs and their ids -----------------------------------------------------------------------------------------------


def test_jobs_are_ordered_by_task_method_and_seed(planned):
    found = planned({"tasks": ["bare", "line@smoke"], "methods": ["tuned", "plain"], "seeds": [3, 1]})
    assert [(job.task, job.label, job.seed) for job in found.jobs] == [
        (task, method, seed) for task in ("toy/bare", "toy/line") for method in ("tuned", "plain") for seed in (3, 1)
    ]


def test_a_job_is_whole_and_its_id_is_the_digest_of_its_identity(planned):
    data = {
        "methods": [{"method": "tuned", "grid": {"alpha": [0, 0.5], "mode": ["hard", "soft"]}}],
        "tasks": ["line@smoke", {"task": "bare", "override": {"examples": 32}, "budget": {"steps": 3}}],
        "resources": {"memory": "1GiB"},
        "timeout": "10m",
        "keep": "model",
    }
    found = planned(data, seeds=2)
    assert len(found.jobs) == 16
    for job in found.jobs:
        again = Job.model_validate_json(job.model_dump_json())
        assert again == job
        assert again.id == job.id == digest(job.identity)
        assert again.spec_digest == job.spec_digest == digest(job.spec)
    job = found.jobs[-1]
    assert (job.spec["examples"], job.spec["limits"], job.scale) == (32, {"steps": 3}, "cpu")
    assert (job.resources.memory, job.timeout, job.keep) == (2**30, 600, ("model",))


def test_labels_show_what_differs_from_the_defaults_in_the_order_of_the_method(planned):
    grid = {"beta": [2.0, 1], "alpha": [0.1, 5e-3], "layers": [[3, 4]], "mode": ["hard"]}
    found = planned({"methods": ["tuned", {"method": "toy/tuned", "grid": grid}]})
    assert [job.label for job in found.jobs] == [
        "tuned",
        "tuned(beta=2, mode=hard, layers=[3,4])",
        "tuned(alpha=0.005, beta=2, mode=hard, layers=[3,4])",
        "tuned(mode=hard, layers=[3,4])",
        "tuned(alpha=0.005, mode=hard, layers=[3,4])",
    ]


def test_ids_are_the_same_in_every_process(planned, registry):
    script = (
        "import sys; from pathlib import Path; from kdbench.registry import discover\n"
        "from kdbench.suite import suite_of; from kdbench.plan import make_plan\n"
        "data = {'tasks': ['line@smoke'], 'methods': [{'method': 'tuned', 'grid': {'alpha': [0.3, 1]}}], 'seeds': 2}\n"
        "registry = discover([Path(name) for name in sys.argv[1:]])\n"
        "print([job.id for job in make_plan(suite_of(data), registry, Path('none')).jobs])\n"
        "assert 'torch' not in sys.modules and 'numpy' not in sys.modules"
    )
    plugins = [Path(__file__).parent / "toytrack" / "extension.py", registry.methods["toy/tuned"].path.parent]
    environment = {**os.environ, "PYTHONHASHSEED": "7"}
    command = [sys.executable, "-c", script, *map(str, plugins)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
    here = planned({"methods": [{"method": "tuned", "grid": {"alpha": [0.3, 1]}}], "seeds": 2})
    assert done.stdout.strip() == str(ids(here))


@pytest.mark.parametrize(
    "change",
    [
        {"methods": [{"method": "tuned", "params": {"alpha": 0.2}}]},
        {"methods": [{"method": "tuned", "params": {"layers": [2, 1]}}]},
        {"seeds": [1]},
        {"tasks": ["line@cpu"]},
        {"tasks": ["bare@smoke"]},
        {"tasks": [{"task": "line@smoke", "override": {"features": 5}}]},
        {"tasks": [{"task": "line@smoke", "override": {"recipe": {"lr": 0.2}}}]},
        {"tasks": [{"task": "line@smoke", "override": {"teacher": {"steps": 21}}}]},
        {"tasks": [{"task": "line@smoke", "budget": {"steps": 5}}]},
        {"budget": {"samples": 100}},
    ],
)
def test_what_changes_results_changes_ids(planned, change):
    base = {"methods": ["tuned"]}
    assert set(ids(planned(base))).isdisjoint(ids(planned({**base, **change})))


@pytest.mark.parametrize(
    "change",
    [
        {"name": "other", "description": "another"},
        {"resources": {"cpus": 0.5, "memory": "1GiB"}},
        {"executor": {"name": "local", "workers": 1}},
        {"timeout": 5},
        {"keep": "model"},
        {"tracking": False},
        {"tasks": [{"task": "line", "scale": "smoke", "override": {"title": "Another", "timeout": 7}}]},
        {"scale": "smoke", "tasks": ["line"]},
        {"budget": {"steps": 4}},
        {"methods": [{"method": "toy/tuned", "params": {"alpha": 0.1, "layers": [1, 2]}, "tasks": ["line"]}]},
        {"methods": [{"method": "tuned", "grid": {"beta": [1]}}]},
    ],
)
def test_what_changes_no_result_changes_no_id(planned, change):
    base = {"methods": ["tuned"]}
    assert ids(planned(base)) == ids(planned({**base, **change}))


def test_a_method_s_file_changes_its_own_jobs_alone(planned, tmp_path):
    folder = tmp_path / "edited"
    both = {"methods": ["plain", "tuned"]}
    before = ids(planned(both, registry=toy_registry(folder)))
    path = folder / "plain.py"
    path.write_text(path.read_text() + "\n# edited\n")
    after = ids(planned(both, registry=registry_of(folder)))
    assert before[0] != after[0]
    assert before[1] == after[1]


def test_versions_of_shared_code_change_every_id(planned, registry, monkeypatch):
    before = ids(planned())
    tracks = {**registry.tracks, "toy": replace(registry.tracks["toy"], version=2)}
    monkeypatch.setattr(registry, "tracks", tracks)
    newer = ids(planned())
    monkeypatch.undo()
    monkeypatch.setattr(plan, "PROTOCOL", 99)
    protocol = ids(planned())
    assert len({before[0], newer[0], protocol[0]}) == 3


def test_work_that_is_asked_for_twice_runs_once_and_is_noted(planned):
    found = planned({"methods": ["plain", "tuned", {"method": "tuned", "grid": {"beta": [1, 1.0, 2]}}], "seeds": 2})
    assert len(found.jobs) == len(set(ids(found))) == 6
    (note,) = found.notes
    assert "tuned on toy/line@smoke is asked for more than once (4 jobs); it runs once" in note.message


def test_ten_thousand_jobs_take_under_two_seconds(planned, tmp_path):
    grid = {"alpha": [i / 100 for i in range(50)], "beta": [i / 10 for i in range(1, 11)]}
    data = {"tasks": ["line@smoke", "bare@smoke"], "methods": [{"method": "tuned", "grid": grid}], "seeds": 10}
    planned()  # imports
    started = time.process_time()
    assert len(planned(data).jobs) == 10_000
    assert time.process_time() - started < 2


def test_a_slip_in_a_grid_is_refused_before_it_costs_anything(planned):
    grid = {"alpha": [0.1] * 1000, "beta": [1.0] * 1000}
    with pytest.raises(UsageError, match="asks for 1,000,000 jobs, but a plan has at most 200,000"):
        planned({"methods": [{"method": "tuned", "grid": grid}]})


# --- names ------------------------------------------------------------------------------------------------------------


def test_a_method_runs_on_every_task_that_it_supports(planned):
    found = planned({"tasks": ["line@smoke", "bare@smoke"], "methods": ["plain", "lineal"]})
    assert [(job.task, job.label) for job in found.jobs] == [
        ("toy/line", "plain"),
        ("toy/line", "lineal"),
        ("toy/bare", "plain"),
    ]


@pytest.mark.parametrize("name", ["line", "toy/line", "line@smoke", "toy/line@smoke"])
def test_an_entry_can_be_for_some_tasks(planned, name):
    entry = {"method": "plain", "tasks": [name]}
    found = planned({"tasks": ["line@smoke", "line@cpu", "bare"], "methods": [entry]})
    assert (found.jobs[0].task, found.jobs[0].scale) == ("toy/line", "smoke")
    assert len(found.jobs) == (1 if "@" in name else 2)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("tasks: [lin]", ["1:9: there is no task 'lin' (did you mean 'line'?)"]),
        ("tasks: [toi/line]", ["1:9: there is no task 'toi/line'"]),
        ("tasks: [line@paper]", ["1:9: the task toy/line has no scale 'paper'"]),
        ("tasks: [{task: line, scale: paper}]", ["1:29: the task toy/line has no scale 'paper'"]),
        ("scale: paper\ntasks: [line]", ["1:8: the task toy/line has no scale 'paper'"]),
        ("methods: [plian]", ["1:11: there is no method 'plian' (did you mean 'plain'?)"]),
        ("methods: [toi/plain]", ["1:11: there is no track 'toi'"]),
        (
            "methods: [{method: lineal}]\ntasks: [bare]",
            ["1:20: the method 'lineal' supports no task of this suite (toy/lineal is for line)"],
        ),
        (
            "methods: [{method: lineal, tasks: [line, bare]}]\ntasks: [bare, line]",
            ["1:42: the method 'lineal' does not support the task toy/bare (toy/lineal is for line)"],
        ),
        ("methods: [{method: plain, tasks: [lime]}]", ["1:35: the suite has no task 'lime'"]),
        (
            "methods: [{method: tuned, params: {alpha: 2, beta: x, modus: 1}}]",
            [
                "1:43: 'alpha' must be at least 0 and at most 1, but is the number 2",
                "1:52: 'beta' must be a number, but is the text 'x'",
                "1:55: toy/tuned has no parameter 'modus' (did you mean 'mode'?)",
            ],
        ),
        (
            "methods: [{method: tuned, params: {alpha: true}}]",
            ["1:43: 'alpha' must be a number, but is the truth value"],
        ),
        (
            "methods:\n  - method: tuned\n    grid:\n      alpha: [0.5, 3]\n      bta: [1]\n      mode: [soft, sofd]",
            [
                "4:20: 'alpha' must be at least 0 and at most 1, but is the number 3",
                "5:7: toy/tuned has no parameter 'bta' (did you mean 'beta'?)",
                "6:20: 'mode' must be 'hard' or 'soft', but is the text 'sofd' (did you mean 'soft'?)",
            ],
        ),
        ("tasks: [{task: line, override: {exampels: 3}}]", ["1:33: unknown key 'exampels' (did you mean 'examples'"]),
        (
            "tasks:\n  - task: line\n    override:\n      recipe: {lr: -1}\n      examples: many",
            ["4:20: 'recipe.lr' must be above 0, but is the number -1", "5:17: 'examples' must be a whole number"],
        ),
        ("tasks: [{task: line, override: {name: x}}]", ["1:33: toy/line: name cannot be overridden"]),
        (
            "budget: {stpes: 3}",
            ["1:10: toy/line does not limit 'stpes', and no meter has this name (did you mean 'steps'"],
        ),
    ],
)
def test_every_problem_has_its_place_in_the_suite(registry, tmp_path, text, expected):
    given = {line.split(":")[0] for line in text.splitlines()}
    rest = {"tasks": "[line]", "methods": "[plain]"}
    path = tmp_path / "a.yaml"
    path.write_text("\n".join([text, *(f"{key}: {value}" for key, value in rest.items() if key not in given)]))
    with pytest.raises(UsageError) as caught:
        make_plan(load_suite(path), registry, tmp_path)
    found = [str(problem) for problem in caught.value.problems]
    assert len(found) == len(expected), found
    assert all(a.startswith(f"{path}:{b}") for a, b in zip(found, expected, strict=True)), found


def test_problems_of_inherited_values_stand_where_they_were_written(registry, tmp_path):
    (tmp_path / "base.yaml").write_text(
        "tasks:\n  - {task: line, override: {examples: x}}\nmethods:\n  - {method: tuned, params: {alpha: 2}}\n"
    )
    (tmp_path / "top.yaml").write_text("extends: base.yaml\nmethods+: [{method: tuned, grid: {beta: [0]}}]\n")
    with pytest.raises(UsageError) as caught:
        make_plan(load_suite(tmp_path / "top.yaml"), registry, tmp_path)
    assert [p.place for p in caught.value.problems] == [f"{tmp_path}/base.yaml:2:39"]  # no task, no method to check
    (tmp_path / "base.yaml").write_text((tmp_path / "base.yaml").read_text().replace("examples: x", "examples: 3"))
    with pytest.raises(UsageError) as caught:
        make_plan(load_suite(tmp_path / "top.yaml"), registry, tmp_path)
    assert [p.place for p in caught.value.problems] == [f"{tmp_path}/base.yaml:4:37", f"{tmp_path}/top.yaml:2:42"]


# --- options ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pattern", "count"),
    [("toy/line", 2), ("*bare*", 2), ("alpha=0.5", 2), ("toy/plain", 2), (["bare", "alpha"], 1), ("t*y/l?ne@smoke", 2)],
)
def test_a_filter_keeps_jobs_by_task_method_or_label(planned, pattern, count):
    methods = ["plain", {"method": "tuned", "params": {"alpha": 0.5}}]
    found = planned({"tasks": ["line@smoke", "bare@smoke"], "methods": methods}, filter=pattern)
    assert len(found.jobs) == count


def test_a_filter_that_matches_nothing_is_an_error(planned):
    with pytest.raises(UsageError, match=r"no job matches 'plian' \(did you mean 'plain'"):
        planned(filter="plian")


def test_seeds_can_be_replaced(planned):
    assert [job.seed for job in planned(seeds=3).jobs] == [0, 1, 2]
    assert [job.seed for job in planned(seeds=[5]).jobs] == [5]
    for bad in (0, [], [-1], [True]):
        with pytest.raises(UsageError, match="seeds are"):
            planned(seeds=bad)


# --- what is there already --------------------------------------------------------------------------------------------


def test_done_failed_stale_and_left(planned, tmp_path):
    jobs = planned(seeds=4).jobs
    current = module_digest("kdbench.task")
    outcomes.put(tmp_path, outcomes.make_outcome(jobs[0], 0.5, metrics={"mse": 0.5}, modules=current))
    outcomes.put(tmp_path, outcomes.make_outcome(jobs[1], 0.5, modules="another"))
    outcomes.put(tmp_path, outcomes.make_outcome(jobs[2], status="oom", modules=current))
    found = planned(seeds=4)
    assert found.done == {jobs[0].id: "ok", jobs[1].id: "ok", jobs[2].id: "oom"}
    assert found.stale == {jobs[1].id: ["kdbench.task"]}
    assert [job.id for job in found.failed] == [jobs[2].id]
    assert [job.id for job in found.left] == [jobs[3].id]


def test_a_damaged_outcome_is_noted_and_its_job_is_left(planned, tmp_path):
    (job,) = planned().jobs
    outcomes.put(tmp_path, outcomes.make_outcome(job))
    path = tmp_path / "jobs" / job.id / "outcome.json"
    path.write_bytes(path.read_bytes()[:100])
    found = planned()
    assert found.left == [job]
    assert "damaged outcome" in str(found.notes[0])


def test_missing_teachers_are_known_from_the_cache(planned, tmp_path):
    data = {"tasks": ["line@smoke", "line@cpu", "bare"]}
    (need,) = planned(data).teachers  # both scales share a teacher, bare has none
    assert (need.task, need.kind, need.present) == ("toy/line", "teacher", False)
    Cache(tmp_path / "cache").get(need.kind, need.key, lambda folder: (folder / "x").write_text("x"))
    assert planned(data).teachers[0].present


def test_a_plan_is_json(planned):
    from kdbench.cli.suites import plan_data

    data = json.loads(json.dumps(plan_data(planned({"methods": ["plain", "tuned"]}, seeds=2))))
    assert data["job_count"] == len(data["jobs"]) == data["left"] == 4
    assert [group["label"] for group in data["groups"]] == ["plain", "tuned"]


# --- what claims compare ----------------------------------------------------------------------------------------------


def labels(found: plan.Plan) -> list[tuple[str, str]]:
    return [(job.task, job.label) for job in found.jobs]


@pytest.fixture
def claiming(tmp_path):
    """Plans of the methods ``new``, which claims what it is given, ``old``, ``other`` and ``plain``."""

    def make(*claims: str, tasks=("*",), methods=("new", "old", "other", "plain"), where=("line", "bare"), **options):
        folder = tmp_path / "claiming"
        write_paper(folder, "new", *claims, tasks=tasks)
        write_paper(folder, "old")
        write_paper(folder, "other", compare("other", "plain", tasks=["elsewhere"]))
        write_paper(folder, "plain")
        data = {"tasks": [f"{task}@cpu" if isinstance(task, str) else task for task in where], "methods": list(methods)}
        return planner(registry_of(folder), tmp_path)(data, claims=True, **options)

    return make


HALF = {"method": "new", "params": {"weight": 0.5}}


def test_both_sides_of_a_claim_are_kept_on_its_tasks(claiming):
    found = claiming(compare("new", "old", tasks=["line"]), seeds=2)
    assert labels(found) == [("toy/line", "new")] * 2 + [("toy/line", "old")] * 2
    assert [task.label for task in found.tasks] == ["toy/line@cpu"]
    assert labels(claiming(compare("new", "old", tasks=["*"]))) == [
        (task, label) for task in ("toy/line", "toy/bare") for label in ("new", "old")
    ]


def test_a_side_that_the_suite_does_not_have_on_a_task_leaves_the_other_out(claiming):
    only = {"method": "old", "tasks": ["toy/bare"]}
    found = claiming(compare("new", "old", tasks=["*"]), methods=["new", only, "plain"])
    assert labels(found) == [("toy/bare", "new"), ("toy/bare", "old")]
    made_for_line = claiming(compare("new", "old", tasks=["*"]), tasks=["line"])
    assert labels(made_for_line) == [("toy/line", "new"), ("toy/line", "old")]


def test_sides_are_methods_with_parameters(claiming):
    claims = [compare("new", HALF)]
    assert claiming_nothing(claiming, *claims, methods=["new", "old"])
    half = {"method": "new", "params": {"weight": 0.5}}
    assert labels(claiming(*claims, methods=["new", half, "old"])) == [
        ("toy/line", "new"),
        ("toy/line", "new(weight=0.5)"),
    ]
    assert labels(claiming(*claims, methods=["new", {"method": "new", "grid": {"weight": [0.25, 0.5]}}])) == [
        ("toy/line", "new"),
        ("toy/line", "new(weight=0.5)"),
    ]


def claiming_nothing(claiming, *claims: str, **more: object) -> bool:
    with pytest.raises(UsageError, match=r"--claims: no claim of a card compares jobs of this suite"):
        claiming(*claims, **more)
    return True


def test_a_claim_about_a_number_needs_its_subject_alone(claiming):
    assert labels(claiming(compare("new", 0.5))) == [("toy/line", "new")]


def test_a_claim_that_names_what_is_not_there_keeps_nothing(claiming):
    assert claiming_nothing(claiming, compare("new", "gone"))
    assert claiming_nothing(claiming, compare("new", {"method": "old", "params": {"wieght": 1}}))
    assert claiming_nothing(claiming)


def test_a_task_that_the_suite_changed_is_one_of_the_claim(claiming):
    changed = {"task": "line@cpu", "override": {"features": 5}}
    found = claiming(compare("new", "old"), where=[changed, "bare"])
    assert labels(found) == [("toy/line", "new"), ("toy/line", "old")]
    assert found.jobs[0].spec["features"] == 5


def test_what_claims_compare_can_be_filtered(claiming):
    claim = compare("new", "old", tasks=["*"])
    assert labels(claiming(claim, filter=["toy/bare", "old"])) == [("toy/bare", "old")]
    with pytest.raises(UsageError, match=r"--filter: no job that claims compare matches 'plain'"):
        claiming(claim, filter="plain")


def test_what_claims_keep_of_a_suite_that_comes_with_kdbench_is_what_claims_run_makes(registry, tmp_path):
    make = planner(registry, tmp_path)
    suite = open_suite("policy", registry)
    whole = {job.id for job in plan.make_plan(suite, registry, tmp_path).jobs}
    kept = {job.id for job in plan.make_plan(suite, registry, tmp_path, claims=True).jobs}
    assert 0 < len(kept) < len(whole)
    assert kept < whole
    wanted = set()
    for method in registry.methods.values():
        if method.track == "policy" and method.card.claims:
            wanted |= set(ids(make(suite_of_claims(registry, method, "cpu", list(suite.seeds)))))
    assert kept <= wanted
