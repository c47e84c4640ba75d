"""Claims of cards against outcomes: which jobs count, for which task, and what a paper comes to."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from kdbench.errors import UsageError
from kdbench.job import Outcome
from kdbench.leaderboard import claimtext
from kdbench.leaderboard.claims import Finding, conclude, load_claims, records
from kdbench.leaderboard.stated import suite_of_claims
from kdbench.store import duck
from tests.helpers.claims import compare, ran, write_paper
from tests.helpers.outcomes import put
from tests.helpers.suites import planner, registry_of

OLD = [0.50, 0.52, 0.48, 0.51, 0.49]
BETTER = [0.40, 0.43, 0.38, 0.41, 0.38]
"""Of an error: less is better."""
WORSE = [0.60, 0.63, 0.58, 0.61, 0.58]
HALF = {"method": "new", "params": {"weight": 0.5}}
COLUMNS = [
    *("method", "track", "claim", "task", "scale", "spec_digest", "metric", "kind", "margin", "subject", "reference"),
    *("n", "effect", "low", "high", "verdict", "note", "command"),
]


class World:
    """A registry with ``toy/new``, whose card makes the given claims, ``toy/old`` and ``toy/only`` (for one task)."""

    def __init__(self, folder: Path, *claims: str) -> None:
        self.results = folder / "results"
        methods = folder / "methods"
        write_paper(methods, "new", *claims)
        write_paper(methods, "old")
        write_paper(methods, "only", tasks=["bare"])
        self.registry = registry_of(methods)

    def ran(self, slug: str, scores: Sequence[float | str | None], **more: object) -> list[Outcome]:
        return put(self.results, ran(self.registry, slug, scores, **more))

    def findings(self, **more: object) -> list[Finding]:
        return duck.query(self.results, lambda con: load_claims(con, self.registry, methods=["toy/new"], **more))

    def finding(self) -> Finding:
        (finding,) = self.findings()
        return finding


@pytest.fixture
def world(tmp_path):
    return lambda *claims: World(tmp_path, *claims)


@pytest.mark.parametrize(
    ("scores", "verdict", "sign"),
    [(BETTER, "reproduced", 1), (WORSE, "not reproduced", -1), (OLD, "not reproduced", 0)],
)
def test_a_claim_is_judged_in_the_direction_of_the_tasks_metric(world, scores, verdict, sign):
    here = world(compare("new", "old"))
    here.ran("new", scores)
    here.ran("old", OLD)
    found = here.finding()
    assert (found.title, found.verdict, found.judgement.n, found.jobs) == ("toy/line@cpu", verdict, 5, 10)
    assert found.direction == "min"
    assert found.judgement.effect.mean == pytest.approx(0.1 * sign)
    assert found.command == "kdbench claims --run toy/new"
    assert found.standard


def test_records_are_flat_rows_of_every_claim_with_the_same_columns(world):
    here = world(compare("new", "old"), compare("new", HALF, tasks=["regress"], kind="ratio", margin=0.9))
    here.ran("new", BETTER)
    here.ran("old", OLD)
    rows = duck.query(here.results, lambda con: records(con, here.registry))
    mine = [row for row in rows if row["method"] == "toy/new"]
    assert {tuple(row) for row in rows} == {tuple(COLUMNS)}
    assert [(row["claim"], row["task"], row["verdict"], row["n"]) for row in mine] == [
        (1, "toy/line", "reproduced", 5), (2, "toy/line", "undecided", 0), (2, "toy/bare", "undecided", 0),
    ]  # fmt: skip
    assert mine[0]["low"] < mine[0]["effect"] < mine[0]["high"]
    assert (mine[1]["reference"], mine[1]["margin"], mine[1]["effect"]) == ("new(weight=0.5)", 0.9, None)
    assert mine[1]["note"] == "new(weight=0.5) has not run here"
    assert {row["method"] for row in rows} >= {"llm/taid", "vision/pld"}, "those that nobody tried are there too"
    assert all(row["note"] for row in rows if row["verdict"] == "undecided")


def test_a_method_counts_at_the_parameters_that_the_claim_names(world):
    here = world(compare("new", "old"), compare("new", {"method": "new", "params": {"weight": 2}}))
    here.ran("new", WORSE)
    here.ran("new", BETTER, params={"weight": 0.5})
    here.ran("new", OLD, params={"weight": 2.0})
    here.ran("old", OLD)
    found = here.findings()
    assert [finding.verdict for finding in found] == ["not reproduced", "not reproduced"], "no better sweep helps"
    assert found[1].reference == "new(weight=2)"
    assert found[1].judgement.n == 5


def test_metrics_that_only_methods_measure_have_the_direction_of_the_claim(world):
    claims = [compare("new", "old", "purity", direction=direction) for direction in ("max", "min")]
    here = world(*claims, compare("new", "old", "speed"))
    for slug, values in (("new", BETTER), ("old", OLD)):
        for seed, value in enumerate(values):
            here.ran(slug, [None] * seed + [0.1], extra={"purity": value})
    assert [finding.verdict for finding in here.findings()] == ["not reproduced", "reproduced", "undecided"]
    assert here.findings()[2].note == "new does not measure speed"


def test_of_meters_less_is_better(world):
    here = world(compare("new", "old", "teacher_queries", kind="ratio", margin=0.5))
    here.ran("new", OLD, cost={"teacher_queries": 3000.0})
    here.ran("old", OLD, cost={"teacher_queries": 6400.0})
    found = here.finding()
    assert (found.verdict, found.direction) == ("reproduced", "min")
    assert claimtext.statement(found) == "new / old ≤ 0.5"


def test_an_identity_needs_no_other_method(world):
    here = world(compare("new", 0.0, "gap", kind="noninferior", margin=1e-6, direction="min"))
    here.ran("new", OLD, extra={"gap": 1e-9})
    assert here.finding().verdict == "reproduced"
    assert claimtext.statement(here.finding()) == "new ≤ 0 + 1e-06"


def test_failures_and_missing_jobs_are_told(world):
    here = world(compare("new", "old"))
    here.ran("old", OLD)
    assert here.finding().note == "new has not run here"
    here.ran("new", [*BETTER[:4], "oom"])
    assert (here.finding().verdict, here.finding().judgement.n) == ("undecided", 4)
    assert "1 oom" in here.finding().note
    here.ran("new", [*BETTER[:2], "diverged", "diverged", "over_budget"])
    assert here.finding().verdict == "not reproduced"
    assert "diverged or overspent on 3 of the 5 seeds" in here.finding().note


def test_a_claim_ran_where_both_sides_have_a_job(world):
    here = world(compare("new", "old"), compare("new", 0.5), compare("new", "gone"), compare("only", "old"))
    here.ran("new", BETTER)
    assert [finding.judgement.ran for finding in here.findings()] == [False, True, False, False]
    here.ran("old", ["failed"])
    assert [finding.judgement.ran for finding in here.findings()] == [True, True, False, False]


def test_papers_in_markdown_are_followed_by_their_findings(world):
    here = world(compare("new", "old"))
    here.ran("new", BETTER)
    here.ran("old", OLD)
    found = here.findings()
    text = claimtext.papers_markdown(conclude(found), found, here.registry, " --results there")
    lines = text.splitlines()
    assert lines[0].startswith("1 paper with claims: 1 reproduced")
    assert [line.count("✓ reproduced") for line in lines if line.startswith("| ✓")] == [1, 1]
    assert text.count("kdbench claims --run toy/new --results there") == 2
    assert claimtext.RULE in text
    assert claimtext.RULE not in claimtext.papers_markdown(conclude(found), [], here.registry)


def test_interrupted_jobs_did_not_run(world):
    here = world(compare("new", "old"))
    here.ran("new", ["interrupted"] * 5)
    here.ran("old", OLD)
    assert here.finding().note == "new has not run here"


def test_results_of_another_version_are_marked(world):
    here = world(compare("new", "old"))
    here.ran("new", BETTER)
    here.ran("old", OLD, digest="another")
    assert here.finding().verdict == "reproduced"
    assert here.finding().note == "old ran as an earlier version"
    here.ran("old", OLD, digest="another", protocol=0, minutes=9.0)
    assert "the jobs ran with different versions of the track or the protocol" in here.finding().note


def test_mixtures_of_kdbenchs_own_code_are_marked(world):
    here = world(compare("new", "old"))
    here.ran("new", BETTER, modules="m0")
    here.ran("old", OLD, modules="m1")
    assert here.finding().verdict == "reproduced"
    assert here.finding().note == "the jobs ran with different versions of kdbench.task"


def test_a_table_says_mixtures_in_two_words_and_once_of_what(world):
    here = world(compare("new", "old"), compare("new", HALF))
    here.ran("new", BETTER, modules="m0")
    here.ran("old", OLD, modules="m1")
    here.ran("new", OLD, params=HALF["params"], modules="m0")
    found = here.findings()
    assert [finding.mixed for finding in found] == [("kdbench.task",), ()]
    columns, rows, _ = claimtext.findings_table(found)
    assert [row[columns.index("why")] for row in rows] == ["mixed code", ""]
    said = "mixed code: the jobs of 1 finding ran with different versions of kdbench.task; --json says of which"
    assert claimtext.mixture(found) == said
    assert said in claimtext.claims_markdown(found).splitlines()
    assert claimtext.mixture(found[1:]) == ""


def test_a_task_that_refuses_a_leaderboard_decides_nothing(world):
    here = world(compare("new", "old"))
    here.ran("new", BETTER)
    here.ran("old", OLD, gate=["the teacher knows nothing"], minutes=9.0)
    found = here.finding()
    assert (found.verdict, found.judgement.n) == ("undecided", 5)
    assert "the teacher knows nothing" in found.note


def test_other_scales_and_definitions_are_judged_apart_and_only_tasks_as_they_come_make_a_paper(world):
    here = world(compare("new", "old"))
    for slug, scores in (("new", WORSE), ("old", OLD)):
        here.ran(slug, scores, limits={"steps": 3})
        here.ran(slug, scores, scale="smoke")
    here.ran("old", OLD)
    found = here.findings()
    assert sorted((f.scale, f.standard, f.verdict) for f in found) == [
        ("cpu", False, "not reproduced"), ("cpu", True, "undecided"), ("smoke", True, "not reproduced"),
    ]  # fmt: skip
    assert {(f.scale, f.standard): f.command for f in found} == {
        ("cpu", True): "kdbench claims --run toy/new",
        ("cpu", False): "",
        ("smoke", True): "kdbench claims --run toy/new --scale smoke",
    }
    assert {(c.scale, c.verdict) for c in conclude(found)} == {("cpu", "undecided"), ("smoke", "not reproduced")}
    assert [f.scale for f in here.findings(scale="smoke") if f.standard] == ["smoke"], "nothing of new ran on cpu"


@pytest.mark.parametrize(
    ("verdicts", "expected"),
    [
        ((BETTER, BETTER), "reproduced"),
        ((BETTER, OLD), "not reproduced"),
        ((BETTER, None), "undecided"),
        ((WORSE, None), "not reproduced"),
        ((None, None), "undecided"),
    ],
)
def test_a_paper_is_reproduced_if_all_its_claims_are_everywhere_and_not_if_any_is_not(world, verdicts, expected):
    here = world(compare("new", "old", tasks=["line", "bare"]))
    here.ran("old", OLD)
    for task, scores in zip(("toy/line", "toy/bare"), verdicts, strict=True):
        here.ran("old", OLD, task=task)
        here.ran("new", scores or [], task=task)
    (conclusion,) = conclude(here.findings())
    assert conclusion.verdict == expected
    assert conclusion.counts.total() == 2
    assert conclusion.ran


@pytest.mark.parametrize(
    ("claim", "reason"),
    [
        (compare("new", "odl"), "there is no method 'odl'"),
        (compare("new", {"method": "old", "params": {"wieght": 1}}), "toy/old has no parameter 'wieght'"),
        (compare("new", "old", tasks=["lines"]), "the track toy has no task and no family 'lines'"),
        (compare("new", "only", tasks=["line"]), "no task of the claim (line) is for new and only"),
    ],
)
def test_a_claim_about_what_is_not_there_is_undecided_and_cannot_be_run(world, claim, reason):
    here = world(claim)
    here.ran("new", BETTER)
    found = here.finding()
    assert found.verdict == "undecided"
    assert reason in found.note
    assert conclude([found])[0].verdict == "undecided"
    with pytest.raises(UsageError, match=re.escape(reason)) as caught:
        suite_of_claims(here.registry, here.registry.methods["toy/new"], "cpu", [0])
    assert caught.value.problems[0].place.endswith("new.py:4")


def test_tasks_without_the_scale_or_without_a_side_are_left_out(world):
    here = world(compare("new", "only", tasks=["regress"]))
    here.ran("new", BETTER)
    here.ran("only", OLD, task="toy/bare")
    assert [finding.task for finding in here.findings()] == ["toy/bare"]
    (nowhere,) = here.findings(scale="paper")
    assert nowhere.note == "no task of the claim (regress) has the scale 'paper'"
    assert nowhere.command == ""


def test_a_name_that_a_task_and_a_family_have_is_the_tasks(world, monkeypatch):
    here = world(compare("new", "old", tasks=["bare"]), compare("new", 0.0, tasks=["regress"]))
    entries = [replace(e, family="bare" if e.name == "toy/line" else e.family) for e in here.registry.tasks()]
    monkeypatch.setattr(here.registry.catalog, "entries", lambda: entries)
    here.ran("new", BETTER)
    assert {(f.number, f.task) for f in here.findings()} >= {(1, "toy/bare"), (2, "toy/bare")}
    assert (1, "toy/line") not in {(f.number, f.task) for f in here.findings()}


def test_a_task_that_needs_further_packages_is_asked_for_where_it_is_named_or_has_results(world, monkeypatch):
    here = world(compare("new", "old", tasks=["regress"]), compare("new", 0.0, tasks=["line", "bare"]))
    entries = [replace(e, requires=("further",) * (e.name == "toy/bare")) for e in here.registry.tasks()]
    monkeypatch.setattr(here.registry.catalog, "entries", lambda: entries)
    here.ran("new", BETTER)
    assert {(f.number, f.task) for f in here.findings()} == {(1, "toy/line"), (2, "toy/line"), (2, "toy/bare")}
    here.ran("new", BETTER, task="toy/bare")
    assert (1, "toy/bare") in {(f.number, f.task) for f in here.findings()}


def test_the_suite_of_claims_has_exactly_their_jobs(world, tmp_path):
    here = world(compare("new", "old"), compare("new", HALF, tasks=["*"]), compare("new", 0.0, "gap"))
    suite = suite_of_claims(here.registry, here.registry.methods["toy/new"], "smoke", [0, 3])
    assert suite["name"] == "claims-new"
    make = planner(here.registry, tmp_path)
    jobs = {(job.method, job.label, job.task, job.scale, job.seed) for job in make(suite).jobs}
    assert jobs == {
        (method, label, task, "smoke", seed)
        for method, label, tasks in (
            ("toy/new", "new", ("toy/line", "toy/bare")),
            ("toy/new", "new(weight=0.5)", ("toy/line", "toy/bare")),
            ("toy/old", "old", ("toy/line",)),
        )
        for task in tasks
        for seed in (0, 3)
    }
    with pytest.raises(UsageError, match="makes no claims"):
        suite_of_claims(here.registry, here.registry.methods["toy/old"], "smoke", [0])


def test_every_claim_that_ships_can_be_run():
    from kdbench.registry import discover

    registry = discover()
    methods = [method for method in registry.methods.values() if method.card.claims]
    assert len(methods) >= 8
    for method in methods:
        suite = suite_of_claims(registry, method, "smoke", [0])
        assert suite["tasks"], method.key
        assert suite["methods"], method.key


# --- as text ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("metric", "more", "expected"),
    [
        ("mse", {}, "new < old"),
        ("mse", {"margin": 0.1}, "new < old - 0.1"),
        ("mse", {"kind": "noninferior", "margin": 0.1}, "new ≤ old + 0.1"),
        ("own", {}, "new > old"),
        ("own", {"margin": 0.1}, "new > old + 0.1"),
        ("own", {"kind": "noninferior", "margin": 0.1}, "new ≥ old - 0.1"),
        ("own", {"kind": "ratio", "margin": 0.1}, "new / old ≥ 0.1"),
    ],
)
def test_what_is_claimed_is_a_formula(world, metric, more, expected):
    here = world(compare("new", "old", metric, **more))
    here.ran("old", OLD)
    assert claimtext.statement(here.finding()) == expected


def test_negative_verdicts_are_as_visible_as_positive_ones(world):
    here = world(compare("new", "old"), compare("new", HALF))
    here.ran("new", BETTER)
    here.ran("new", OLD, params={"weight": 0.5})
    here.ran("old", [value - 0.2 for value in BETTER])
    found = here.findings()
    text = claimtext.claims_markdown(found)
    lines = [line for line in text.splitlines() if "toy/new" in line]
    assert [line.split("|")[1].strip() for line in lines] == ["✗ not reproduced", "✓ reproduced"]
    assert all(re.search(r"\| [+-]\d\.\d+ \| [+-]\d\.\d+ to [+-]\d\.\d+ \| 5 \|", line) for line in lines)
    assert claimtext.RULE in text
    conclusions = conclude(found)
    summary = claimtext.summary(conclusions)
    assert summary == "1 paper with claims: 0 reproduced, 1 not reproduced, 0 undecided (0 of them without any job)"
    columns, rows, _ = claimtext.conclusions_table(conclusions, here.registry)
    assert dict(zip(columns, rows[0], strict=True)) == {
        "verdict": "✗ not reproduced",
        "method": "toy/new",
        "year": 2025,
        "made from": "paper",
        "reproduced": 1,
        "not reproduced": 1,
        "undecided": 0,
        "check": "kdbench claims --run toy/new",
    }


def test_what_plugins_write_is_no_command_to_a_terminal(world):
    here = world(compare("new", {"method": "new", "params": {"mode": "a\x1b[31m|b\nc"}}, "m\x1b[2J"))
    here.ran("new", BETTER)
    text = claimtext.claims_markdown(here.findings())
    assert "\x1b" not in text
    assert "\\x1b[31m\\|b\\nc" in text
    assert claimtext.claims_markdown([]) == ""


# --- more seeds where claims are undecided ----------------------------------------------------------------------------

UNCLEAR = [0.49, 0.54, 0.46, 0.53, 0.45]
"""Of an error: as good as ``OLD`` and as bad."""


@pytest.fixture
def planned(world, tmp_path):
    """A claim on two tasks that five seeds decide on ``line`` and not on ``bare``, and plans of its jobs."""
    here = world(compare("new", "old", tasks=["line", "bare"]))
    for task, scores in (("toy/line", BETTER), ("toy/bare", UNCLEAR)):
        here.ran("new", scores, task=task)
        here.ran("old", OLD, task=task)
    data = {"tasks": ["line@cpu", "bare@cpu"], "methods": ["new", "old", "only"], "seeds": 10}
    make = planner(here.registry, tmp_path)
    return here, lambda undecided, **more: make({**data, **more}, results=here.results, undecided=undecided)


def test_more_seeds_can_be_planned_for_what_some_do_not_decide(planned):
    here, plan = planned
    assert [finding.verdict for finding in here.findings()] == ["reproduced", "undecided"]
    found = plan(5)
    assert [(job.task, job.label, job.seed) for job in found.jobs] == [
        ("toy/bare", label, seed) for label in ("new", "old") for seed in range(10)
    ]
    assert len(found.left) == 10
    assert {job.task for job in plan(1).jobs} == {"toy/bare", "toy/line"}, "one seed decides nothing"


def test_later_seeds_do_not_change_what_earlier_ones_left_undecided(planned):
    here, plan = planned
    before = [job.id for job in plan(5).jobs]
    here.ran("new", [None] * 5 + [value - 0.2 for value in OLD], task="toy/bare")
    here.ran("old", [None] * 5 + OLD, task="toy/bare")
    assert [finding.verdict for finding in here.findings()] == ["reproduced", "reproduced"]
    assert [finding.verdict for finding in here.findings(seeds=range(5))] == ["reproduced", "undecided"]
    assert [job.id for job in plan(5).jobs] == before, "a run that was stopped goes on with the same jobs"
    assert not plan(5).left
    with pytest.raises(UsageError, match="--undecided: 10 seeds decide every claim that compares jobs of this suite"):
        plan(10)


def test_what_is_undecided_needs_results_and_claims(planned, tmp_path):
    here, plan = planned
    with pytest.raises(UsageError, match="--claims: no claim of a card compares jobs of this suite"):
        plan(5, methods=["only"])
    with pytest.raises(UsageError, match="--undecided: it is a number of seeds, at least 1, but is 0"):
        plan(0)
    empty = planner(here.registry, tmp_path)
    with pytest.raises(UsageError, match="does not exist, so there are no results"):
        empty({"tasks": ["line@cpu"], "methods": ["new", "old"]}, results=tmp_path / "none", undecided=5)
