"""The suite of a track has every paper, on tasks that it belongs to, with all that its claims compare."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import pytest

from kdbench.cards import Paper
from kdbench.plan import Plan, make_plan
from kdbench.registry import Registry, discover
from kdbench.spec import canonical_json
from kdbench.suite import load_suite

SUITES = Path(__file__).parents[2] / "suites"
PAPERS = {
    "vision": 26,
    "llm": 17,
    "decoding": 5,
    "diffusion": 14,
    "reasoning_rl": 5,
    "dllm": 5,
    "dataset_distillation": 4,
    "policy": 5,
}
"""Tracks with a suite, and how many papers each has."""
SEEDS = {"diffusion": 3, "reasoning_rl": 3, "dllm": 3}
"""Of the suites that have not five."""

pytestmark = pytest.mark.parametrize("track", PAPERS)


@cache
def registry() -> Registry:
    return discover()


@cache
def plan(track: str, results: Path) -> Plan:
    return make_plan(load_suite(SUITES / f"{track}.yaml"), registry(), results)


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("results")


def side(sought: str | dict[str, Any], track: str) -> tuple[str, str]:
    """Method and canonical parameters of a side of a claim."""
    slug, given = (sought, {}) if isinstance(sought, str) else (sought["method"], sought.get("params", {}))
    method = registry().method(slug, track)
    return method.key, canonical_json(method.canonical(given))


def methods_of(track: str) -> dict[str, Any]:
    return {key: method for key, method in registry().methods.items() if key.startswith(f"{track}/")}


def test_every_paper_of_the_track_is_in_the_suite(track: str, results: Path) -> None:
    papers = {key for key, method in methods_of(track).items() if isinstance(method.card, Paper)}
    assert len(papers) == PAPERS[track]
    assert papers <= {job.method for job in plan(track, results).jobs}


def test_all_that_the_claims_compare_is_in_the_suite(track: str, results: Path) -> None:
    made = plan(track, results)
    there = {(job.method, canonical_json(job.params), job.task) for job in made.jobs}
    families = {entry.spec.name: entry.spec.family for entry in made.tasks}
    missing = []
    for key, method in methods_of(track).items():
        for claim in method.card.claims:
            named = set(claim.tasks)
            sides = [
                side(each, track) for each in (claim.subject, claim.reference) if not isinstance(each, float | int)
            ]
            tasks = [
                name
                for name, family in families.items()
                if family in named or name in named or name.split("/")[1] in named
            ]
            judged = [task for task in tasks if all((*each, task) in there for each in sides)]
            if not judged:
                missing.append((key, claim.metric, claim.subject, claim.reference, sorted(named)))
            exact = {task for task in tasks if task.split("/")[1] in named}
            missing += [(key, claim.metric, claim.reference, task) for task in exact - set(judged)]
    assert missing == []


def test_nothing_is_asked_for_twice_or_left_to_a_machine(track: str, results: Path) -> None:
    made = plan(track, results)
    assert [note.message for note in made.notes] == []
    assert {job.seed for job in made.jobs} == set(range(SEEDS.get(track, 5)))
    assert {entry.spec.scale for entry in made.tasks} == {"cpu"}
