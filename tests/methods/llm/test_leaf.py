"""LeaF: confounding tokens by the gradients of both networks, verified counterfactuals, and both divergences."""

from __future__ import annotations

import json

import pytest

from kdbench.tracks.llm.blocks.counterfactuals import contexts_of, flagged
from kdbench.tracks.llm.task import LLMTask
from kdbench_methods.llm.leaf import LeafParams, counterfactuals, score, verified

ALL = {"verify": "none"}


@pytest.fixture
def task(registry, tmp_path):
    return LLMTask(registry.task("llm/instruct", "smoke", {}), seed=0, method="llm/leaf", folder=tmp_path)


def test_without_pruning_or_without_weight_or_where_nothing_passes_it_is_forward_kl(run, caplog):
    plain = run("kd_fkl", "instruct").outcome.metrics
    assert run("leaf", "instruct", prune="none").outcome.metrics == plain
    weightless = run("leaf", "instruct", lam=1.0, **ALL).outcome
    assert weightless.extra["counterfactuals_kept"] > 0
    assert weightless.metrics == plain
    assert "no counterfactual passed" not in caplog.text
    rejected = run("leaf", "instruct", items=4).outcome  # the small networks of this task answer nothing
    assert rejected.extra["counterfactuals_kept"] == 0
    assert rejected.metrics == plain
    assert "no counterfactual passed" in caplog.text


def test_both_divergences_are_minimised_and_everything_is_measured(run, tmp_path):
    job = run("leaf", "instruct", **ALL)
    extra, cost = job.outcome.extra, job.outcome.cost
    assert len(job.column("counterfactual")) == len(job.column("kd")) == 4
    assert extra["counterfactuals_kept"] == extra["counterfactuals"] >= extra["examined"] / 2
    assert 0 < extra["detection_auc_lower"] < extra["detection_auc"] < 1
    assert {"detection_precision", "detection_recall", "distractor_share", "kept_precision"} <= set(extra)
    assert 0 < extra["attention_distractor"] < 1
    assert extra["attention_distractor"] != extra["attention_distractor_before"]
    assert {"exact_match_plain", "exact_match_distracted", "distraction"} <= set(extra)
    assert cost["samples"] == 2 * 4 * 4
    assert cost["teacher_queries"] == 64 + 2 * 4 * 4
    table = json.loads(next(tmp_path.rglob("distraction.json")).read_text())
    assert all(set(row) == {"plain", "with"} for row in table.values())


def test_it_runs_where_irrelevant_sentences_speak_of_what_is_asked_about(run):
    extra = run("leaf", "instruct-distractors", **ALL).outcome.extra
    assert 0 < extra["detection_auc"] < 1
    assert {"exact_match_plain", "exact_match_distracted", "attention_distractor"} <= set(extra)


def test_where_teacher_and_student_are_one_nothing_confounds(task):
    contexts = contexts_of(task.train_items(), task.tokenizer)
    scores = score(task, LeafParams(), task.teacher(), contexts)
    assert not any(flagged(s, 0.1, c.fixed).any() for s, c in zip(scores, contexts, strict=True))
    scores = score(task, LeafParams(), task.student(), contexts)
    assert all(flagged(s, 0.1, [False] * len(s)).any() for s in scores)


def test_other_tokens_are_pruned_by_chance_and_by_perplexity(task):
    contexts, student = contexts_of(task.train_items(), task.tokenizer), task.student()
    flags = {}
    for prune in ("gradient", "random", "perplexity"):
        scores = score(task, LeafParams(prune=prune), student, contexts)
        flags[prune] = [flagged(s, 0.1, [False] * len(s), cap=1.0).tolist() for s in scores]
    assert flags["gradient"] != flags["random"] != flags["perplexity"] != flags["gradient"]
    for prune in ("gradient", "random"):
        assert [sum(f) for f in flags[prune]] == [len(f) // 10 + 1 for f in flags[prune]]


def test_each_judge_lets_fewer_pass(task):
    student, rows = task.student(), task.train_items()
    contexts = contexts_of(rows, task.tokenizer)
    pruned = [context.without([0, 1], source=i) for i, context in enumerate(contexts)]
    kept = {
        verify: verified(task, LeafParams(verify=verify, judge="likelihood"), student, contexts, pruned, rows)
        for verify in ("both", "teacher", "student", "none")
    }
    passed = {verify: {one.source for one in ones} for verify, ones in kept.items()}
    assert passed["none"] == set(range(len(contexts)))
    assert passed["both"] == passed["teacher"] & passed["student"]
    assert 0 < len(passed["both"]) < len(contexts)


def test_steps_of_responses_are_examined_too(task):
    few = counterfactuals(task, LeafParams(**ALL), task.student())
    more = counterfactuals(task, LeafParams(level="response", **ALL), task.student())
    assert not any(one.said for one in few)
    assert {task.train_items()[one.item].family for one in more if one.said} == {"add_steps"}


def test_items_that_the_student_answers_can_be_left_out(task, monkeypatch):
    monkeypatch.setattr("kdbench_methods.llm.leaf.solved", lambda *args: [i % 2 == 0 for i in range(64)])
    counterfactuals(task, LeafParams(failed=True, **ALL), task.student())
    assert json.loads(task.artifact("detection.json").read_text())["examined"] == 32
