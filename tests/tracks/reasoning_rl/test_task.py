"""What a task of the track gives to methods, measures and refuses."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from kdbench.errors import ArtifactError, JobError, TestDataError
from kdbench.spec import digest
from kdbench.tracks.reasoning_rl.evaluation import pass_at_k, repeats
from kdbench.tracks.reasoning_rl.gate import reasons
from kdbench.tracks.reasoning_rl.spec import Calibration, ReasoningSpec
from tests.tracks.reasoning_rl.conftest import registry


@pytest.mark.parametrize("name", ["mixed", "digits"])
def test_every_task_gives_its_metrics(make, name):
    task = make(name)
    task.prepare()
    task.phase = "evaluate"
    scores = task.scores(task.student())
    assert set(scores.metrics) == {metric.name for metric in task.spec.all_metrics()}
    assert len(scores.examples["acc"]) == len(task.problems("test"))
    assert scores.metrics["acc"] == pytest.approx(scores.examples["acc"].mean())
    teacher = task.score(task.teacher())
    assert teacher["kl_teacher"] == pytest.approx(0, abs=1e-6)
    assert teacher["agreement"] == 1.0


def test_scores_are_the_same_again(make):
    first, second = make(), make()
    for task in (first, second):
        task.phase = "evaluate"
    assert first.score(first.student()) == second.score(second.student())


def test_test_problems_are_out_of_reach_in_training(make):
    task = make()
    for name in ("test", "ood_len", "ood_family", "retain"):
        with pytest.raises(TestDataError):
            task.problems(name)
    assert {problem.family for problem in task.problems("train")} == {"modchain", "sortrev"}


def test_splits_are_what_they_are_called(make):
    task = make()
    task.phase = "evaluate"
    assert {p.family for p in task.problems("ood_family")} == {"hops"}
    assert {p.family for p in task.problems("retain")} == {"word"}
    assert {p.level for p in task.problems("ood_len")} == {3}
    assert {p.level for p in task.problems("test")} == {2}
    assert not {p.key for p in task.problems("train")} & {p.key for p in task.problems("test")}


def test_checkpoints_have_names_and_build_on_each_other(make):
    task = make()
    names = task.spec.checkpoint_names()
    assert set(names) == {
        *("student_base", "student_sft", "teacher_sft", "teacher_rl", "expert_arith", "expert_logic"),
        *("peer_1", "peer_2", "peer_3", "peer_4"),
    }
    start, tuned = task.checkpoint("student_base"), task.checkpoint("student_sft")
    assert any(not torch.equal(a, b) for a, b in zip(start.parameters(), tuned.parameters(), strict=True))
    again = task.student().parameters()
    assert all(torch.equal(a, b) for a, b in zip(tuned.parameters(), again, strict=True))
    assert task.checkpoint("teacher_rl") is task.teacher()
    assert task.checkpoint("expert_arith") is task.checkpoint("expert_arith")
    copy = task.checkpoint("student_base", trainable=True)
    assert all(p.requires_grad for p in copy.parameters())
    assert not any(p.requires_grad for p in start.parameters())
    with pytest.raises(JobError, match="no checkpoint 'expert_art'"):
        task.checkpoint("expert_art")


def test_a_teacher_is_found_by_its_stages_and_not_by_what_else_a_task_says():
    registered = registry()
    plain = registered.task("reasoning_rl/mixed", "smoke")
    other = registered.task("reasoning_rl/mixed", "smoke", {"data": {"test": 9}, "limits": {"steps": 1}})
    assert isinstance(plain, ReasoningSpec)
    assert isinstance(other, ReasoningSpec)
    assert plain.teacher_key() == other.teacher_key()
    needs = {title.split()[0]: digest(key) for _, key, title in plain.teacher_needs()}
    assert len(set(needs.values())) == len(needs) == 10
    harder = registered.task("reasoning_rl/mixed", "smoke", {"data": {"levels": [2, 3]}})
    assert harder.teacher_key() != plain.teacher_key()


def test_specifications_that_make_no_sense_say_why():
    from kdbench.errors import KdbenchError

    for override, message in [
        ({"data": {"retain": "modchain"}}, "among the families that are trained on"),
        ({"data": {"levels": [4, 2]}}, "the least first"),
        ({"evaluation": {"samples": 1}}, "less than acc_samples"),
        ({"experts": {"stage": {"objective": "sft"}}}, "experts are made by grpo"),
        (
            {"student": {"stages": [{"objective": "grpo", "steps": 1}, {"objective": "mix", "steps": 1}]}},
            "in the order",
        ),
    ]:
        with pytest.raises(KdbenchError, match=message):
            registry().task("reasoning_rl/mixed", "smoke", override)


def test_what_is_saved_answers_the_same(make, tmp_path):
    task = make()
    model = task.student().eval()
    task.save(model, tmp_path / "model")
    again = task.load(tmp_path / "model")
    prompts = task.encode([task.prompt(problem) for problem in task.problems("val")])
    assert task.sample(model, prompts, temperature=0.0) == task.sample(again, prompts, temperature=0.0)
    with pytest.raises(ArtifactError):
        task.check(None)


def test_pass_at_k_is_the_chance_that_one_of_k_drawn_samples_is_right():
    from itertools import combinations

    correct = np.array([[1, 0, 0, 1, 0, 0], [0, 0, 0, 0, 0, 0], [1, 1, 1, 1, 1, 1]])
    for k in (1, 2, 4, 6):
        counted = [np.mean([max(row[list(c)]) for c in combinations(range(6), k)]) for row in correct]
        assert pass_at_k(correct, k).tolist() == pytest.approx(counted)
    with pytest.raises(ValueError, match="pass@7"):
        pass_at_k(correct, 7)


def test_repetitions_are_counted_by_their_grams():
    assert repeats([1, 2, 3]) == 0
    assert repeats(list(range(30))) == 0
    assert repeats([5] * 13) == pytest.approx(0.9)


GOOD = {
    "student": 0.4,
    "student/addcarry": 0.3,
    "student/sortrev": 0.5,
    "teacher": 0.8,
    "explore": 0.3,
    "hard": 0.2,
    "with_reference": 0.9,
    "with_critique": 0.3,
    "without_critique": 0.1,
}


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({}, []),
        ({"student/addcarry": 0.05}, ["pass@1 in addcarry is 0.050"]),
        ({"teacher": 0.5}, ["a gap of 0.100"]),
        ({"explore": 0.1}, ["pass@8 is 0.100 above"]),
        ({"hard": 0.0}, ["never solves 0.000"]),
        ({"with_reference": 0.5}, ["behind a reference"]),
        ({"with_critique": 0.15}, ["behind a critique"]),
    ],
)
def test_a_task_whose_checkpoints_do_not_suit_says_why(changed, said):
    found = reasons({**GOOD, **changed}, Calibration())
    assert len(found) == len(said)
    assert all(part in sentence for part, sentence in zip(said, found, strict=True))
    assert (
        reasons(
            {**GOOD, **changed},
            Calibration.model_validate(
                dict.fromkeys(("student", "explore", "hard", "teacher", "reference", "critique"))
            ),
        )
        == []
    )


def test_calibration_is_measured_once(make, monkeypatch):
    from kdbench.tracks.reasoning_rl import gate

    task = make(gate={"problems": 4})
    values = task.gap()
    assert {"student", "teacher", "explore", "hard", "with_reference", "student/modchain"} <= set(values)
    assert all(0 <= value <= 1 for name, value in values.items() if name != "explore")
    monkeypatch.setattr(gate, "measure", lambda *_: pytest.fail("measured again"))
    assert task.gap() == values
    task.phase = "evaluate"
    assert any("teacher" in reason for reason in task.board_problems())


def test_validation_is_open_to_training_and_costs_nothing(make):
    task = make()
    values = task.validate(task.student())
    assert set(values) >= {"acc", "loss", "token_accuracy"}
    assert "generated_tokens" not in task.budget.spent
