"""The page of a method: what its card says, its results, and a suite that makes them again."""

from __future__ import annotations

import pytest
import yaml

from kdbench.errors import UsageError
from kdbench.leaderboard.boards import Selection, load_boards
from kdbench.leaderboard.claims import load_claims
from kdbench.leaderboard.report.method_page import method_context, paragraphs
from kdbench.plan import make_plan
from kdbench.store import duck
from kdbench.suite import suite_of
from tests.helpers.claims import compare, ran, write_paper
from tests.helpers.outcomes import grid, put
from tests.helpers.suites import registry_of


@pytest.fixture
def registry(tmp_path):
    methods = tmp_path / "methods"
    write_paper(methods, "new", compare("new", "old", note="New is better."), compare("new", "old", metric="mae"))
    write_paper(methods, "old")
    return registry_of(methods)


def boards_of(results, **selection):
    return duck.query(results, lambda con: load_boards(con, Selection(**selection)))


def test_without_results_a_page_has_the_card_and_the_parameters(registry):
    context = method_context(registry, "toy/new")
    assert (context["track"], context["slug"]) == ("toy", "new")
    card = context["card"]
    assert (card["kind"], card["title"], card["published"]) == ("paper", "The method new", "2025")
    assert card["departures"] == ["fewer steps"]
    assert [claim.note for claim in card["claims"]] == ["New is better.", ""]
    weight, mode = context["params"]
    assert weight == {
        "name": "weight",
        "type": "float",
        "default": "4.0",
        "range": "≥ 0",
        "meaning": "of the divergence",
    }
    assert mode["default"] == '"soft"'
    assert context["results"] == []
    assert context["reproduce"] == ""


def test_every_shipped_method_has_a_context(registry):
    shipped = [key for key in registry.methods if not key.startswith("toy/")]
    assert len(shipped) > 20
    for key in shipped:
        card = method_context(registry, key)["card"]
        assert card["title"], key
        assert card["doc"], key
        assert card["tasks"], key


def test_a_page_has_the_rows_of_all_boards_with_their_verdicts(registry, tmp_path):
    results = tmp_path / "results"
    put(results, [*ran(registry, "new", [0.6, 0.7, 0.8]), *ran(registry, "old", [0.1, 0.2, 0.3])])
    put(results, ran(registry, "new", [0.5, "oom"], task="toy/bare", params={"weight": 2}))
    findings = duck.query(results, lambda con: load_claims(con, registry))
    context = method_context(registry, "new", boards_of(results), findings=findings)
    shown = {(found.board.task, found.row.label): found for found in context["results"]}
    assert set(shown) == {("toy/line", "new"), ("toy/bare", "new")}
    assert shown["toy/line", "new"].verdict == "not reproduced", "less is better, and it has more"
    assert shown["toy/line", "new"].among == 2
    assert shown["toy/bare", "new"].verdict is None
    assert shown["toy/bare", "new"].row.failures == {"oom": 1}
    assert {finding.method for finding in context["findings"]} == {"toy/new"}
    assert context["claims_command"] == "kdbench claims --run toy/new"


def test_the_suite_on_the_page_makes_the_very_same_jobs(registry, tmp_path):
    results = tmp_path / "results"
    written = put(
        results,
        [
            *ran(registry, "new", [0.6, 0.7, 0.8]),
            *ran(registry, "new", [0.6, 0.7, 0.8], params={"weight": 2}, task="toy/bare"),
            *ran(registry, "new", [0.6, 0.7, 0.8], limits={"steps": 3}),
        ],
    )
    text = method_context(registry, "toy/new", boards_of(results))["reproduce"]
    plan = make_plan(suite_of(yaml.safe_load(text)), registry, results)
    assert {job.id for job in plan.jobs} == {outcome.id for outcome in written}


def test_a_task_that_a_suite_had_changed_is_not_in_the_suite(registry, tmp_path):
    spec = registry.task("toy/line", overrides={"recipe": {"lr": 0.5}}).identity()
    put(tmp_path / "results", grid({"new": [0.5]}, task="toy/line", spec=spec))
    context = method_context(registry, "toy/new", boards_of(tmp_path / "results"))
    assert len(context["results"]) == 1
    assert context["reproduce"] == ""


def test_a_method_that_is_gone_has_its_results_and_no_card(registry, tmp_path):
    put(tmp_path / "results", grid({"gone": [0.5, 0.6]}))
    context = method_context(registry, "vision/gone", boards_of(tmp_path / "results"))
    assert context["card"] is None
    assert context["params"] == []
    assert len(context["results"]) == 1
    with pytest.raises(UsageError, match="there is no method"):
        method_context(registry, "vision/never", boards_of(tmp_path / "results"))


def test_docstrings_flow_and_formulas_stay():
    doc = "Head: title.\n\nA line\nthat flows.\n\n    a = b\n      c\n\nEnd.\n"
    assert paragraphs(doc) == [
        ("text", "Head: title."),
        ("text", "A line that flows."),
        ("code", "a = b\n  c"),
        ("text", "End."),
    ]
    assert paragraphs("") == []
