"""Distiller: pipelines of five slots, the search among them, and what is learned from the pipelines of many tasks."""

from __future__ import annotations

import json

import numpy as np
import pytest

from kdbench.errors import UsageError
from kdbench.store.spool import job_folder, read_outcome, write_outcome
from kdbench.tracks.llm.blocks.autodistiller import (
    ARTIFACT,
    FEATURES,
    SPACE,
    alike,
    collect,
    numbered,
    sections,
    study,
    updates,
)
from kdbench.training.halving import sample_product

TASK = "classify-reviews"
PLAIN = {"intermediate": "none", "hard": 0.0}


# --- pipelines --------------------------------------------------------------------------------------------------------


def test_soft_cross_entropy_alone_is_ordinary_distillation(run):
    """The two losses differ by the teacher's entropy, which has no gradient."""
    plain, reference = run("distiller", TASK, **PLAIN), run("kd_fkl", TASK)
    assert plain.outcome.metrics == pytest.approx(reference.outcome.metrics, rel=1e-4)


def test_labels_alone_are_ordinary_training(run):
    one, reference = run("distiller", TASK, intermediate="none", hard=1.0), run("sft", TASK)
    assert one.outcome.metrics == pytest.approx(reference.outcome.metrics, rel=1e-4)
    assert one.column("hard") == one.column("loss")


def test_a_pipeline_logs_its_slots_and_only_those(run):
    result = run(
        "distiller", TASK, augment="mixup", prediction="mse", intermediate="infonce", layers="transport", hard=0.5
    )
    assert all(result.column(name) for name in ("hard", "soft", "intermediate"))
    assert result.outcome.cost["steps"] == 4
    assert "aux_steps" not in result.outcome.cost
    ratio = result.outcome.extra["distillation_ratio"]
    assert ratio > 0
    assert result.outcome.extra["infonce_largest"] <= 0 < result.outcome.extra["mi_largest"]


def test_something_has_to_teach_the_classifier(run):
    with pytest.raises(AssertionError, match="nothing teaches the classifier"):
        run("distiller", TASK, prediction="none", hard=0.0)


# --- search -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("search", "rungs"), [("random", [4]), ("halving", [4, 2])])
def test_a_search_spends_what_it_may_and_trains_its_winner(run, tmp_path, search, rungs):
    options = {"candidates": 4, "search_steps": 3.0, "rungs": 2, "keep": 0.5}
    result = run("distiller", TASK, search=search, **options)
    cost = result.outcome.cost
    assert cost["steps"] == 4
    assert 0 < cost["aux_steps"] <= 12
    record = json.loads((tmp_path / "job0" / "artifacts" / ARTIFACT).read_text())
    trials, final = record["trained"][:-1], record["trained"][-1]
    shares = sorted({trial["share"] for trial in trials})
    assert [sum(trial["share"] == share for trial in trials) for share in shares] == rungs
    last = [trial for trial in trials if trial["share"] == shares[-1]]
    assert final["point"] == max(last, key=lambda trial: trial["score"])["point"]
    assert final["share"] == 1.0
    assert set(record["task"]["features"]) == set(FEATURES)
    shares_of_slots = [result.outcome.extra[f"importance_{slot}"] for slot in SPACE]
    assert all(0 <= share <= 1 for share in shares_of_slots)


def test_a_search_without_steps_is_refused(run):
    with pytest.raises(AssertionError, match="search_steps: 2 steps are too few for 24 candidates"):
        run("distiller", TASK, search="random", candidates=24, search_steps=0.5)


def test_levels_are_parameters(registry):
    method = registry.method("llm/distiller")
    for point in sample_product(SPACE, 384, np.random.default_rng(0)):
        assert method.canonical(updates(point))["hard"] == point["hard"]
    assert updates({"intermediate": "mi-0.9"}) == {"intermediate": "mi", "alpha": 0.9}
    assert numbered([{slot: levels[-1] for slot, levels in SPACE.items()}]).tolist() == [[3, 1, 7, 2, 1]]


# --- many tasks -------------------------------------------------------------------------------------------------------


@pytest.fixture
def results(run, tmp_path):
    """Outcomes of three tasks with 40 pipelines each, of which the intermediate loss decides the score."""
    outcome = run("distiller", TASK, **PLAIN).outcome
    folder = tmp_path / "results"
    for number, name in enumerate(("one", "two", "three")):
        id = f"{number}" * 16
        job = outcome.job.model_copy(update={"task": f"llm/{name}"})
        home = job_folder(folder, id)
        write_outcome(home, outcome.model_copy(update={"id": id, "job": job}))
        trained = [
            {"point": point, "share": 0.25, "score": score, "ratio": score / 0.9}
            for point in sample_product(SPACE, 40, np.random.default_rng(number))
            for score in [0.6 + 0.2 * str(point["intermediate"]).startswith("mi") + 0.02 * point["hard"]]
        ]
        trained.append(
            {"point": {**trained[0]["point"], "intermediate": "mi-0.3"}, "share": 1.0, "score": 1, "ratio": 1}
        )
        features = dict.fromkeys(FEATURES, float(number))
        (home / "artifacts").mkdir()
        (home / "artifacts" / ARTIFACT).write_text(json.dumps({"task": {"features": features}, "trained": trained}))
    return folder


def test_a_study_finds_the_slot_that_matters_and_recommends_what_is_good_elsewhere(results):
    found = study(results)
    assert found["pipelines"] == 120
    assert found["share"] == 0.25
    for task in ("llm/one", "llm/two", "llm/three"):
        shares, advice = found["importance"][task], found["recommendation"][task]
        assert shares["intermediate"] > 0.5 > max(shares[slot] for slot in SPACE if slot != "intermediate")
        assert str(advice["chosen"]["intermediate"]).startswith("mi")
        assert advice["regret"] < 0.02 < advice["random_regret"]
    text = sections(results)["Distillation pipelines"]
    assert "| llm/two |" in text


def test_only_pipelines_of_the_same_length_of_training_are_compared(results):
    rows = collect(results)
    assert len(rows) == 120  # alpha 0.3 is no level of the space
    longer = [{**row, "share": 1.0} for row in rows[:30]]
    assert alike(rows + longer) == rows


def test_variants_of_a_task_are_told_apart(results):
    home = job_folder(results, "1" * 16)
    outcome = read_outcome(home)
    other = {"task": "llm/one", "spec": {**outcome.job.spec, "title": "another"}}
    write_outcome(home, outcome.model_copy(update={"job": outcome.job.model_copy(update=other)}))
    names = {row["task"] for row in collect(results)}
    assert len(names) == 3
    assert sum(name.startswith("llm/one ") for name in names) == 2


def test_one_task_has_nothing_to_learn_from(tmp_path):
    assert sections(tmp_path) == {}
    with pytest.raises(UsageError, match="pipelines of 0 task"):
        study(tmp_path)
