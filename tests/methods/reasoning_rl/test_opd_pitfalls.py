"""Pitfalls of on-policy distillation: gradients of forms, prefixes, privileged information, cells of the grid."""

from __future__ import annotations

import pytest
import torch

from kdbench.losses.support import mass, support_mask
from kdbench.tracks.reasoning_rl.blocks.opd import per_token
from kdbench.tracks.reasoning_rl.blocks.pitfalls import (
    collapse,
    continuations,
    form_gradient,
    gradient_bias,
    internalised,
    mass_identity,
    rule_followed,
    student_mass,
)
from kdbench.tracks.reasoning_rl.blocks.scoring import frozen_logits
from kdbench.tracks.reasoning_rl.data.styles import solution
from kdbench_methods.reasoning_rl import opd_pitfalls

FORMS = ("trunc_sg", "trunc", "renorm", "tail", "inter_sg", "sampled", "reverse", "forward")


@pytest.fixture
def pair():
    """Logits (6, 12) of a student and a teacher in float64, and targets."""
    generator = torch.Generator().manual_seed(0)
    student, teacher = (2 * torch.randn(6, 12, generator=generator, dtype=torch.float64) for _ in range(2))
    return student.requires_grad_(), teacher, torch.arange(6)


def gradient(pair, form, k):
    student, teacher, targets = pair
    (found,) = torch.autograd.grad(per_token(form, student, teacher, targets, k=k).sum(), student)
    return found


# --- gradients --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("k", [1, 3, 8, 12])
def test_truncation_differs_from_its_fix_by_the_gradient_of_the_students_mass(pair, k):
    student, teacher, _ = pair
    (drained,) = torch.autograd.grad(mass(student, support_mask(student, teacher, k)).sum(), student)
    assert torch.allclose(gradient(pair, "trunc", k) - gradient(pair, "trunc_sg", k), drained, atol=1e-14)
    assert mass_identity(student, teacher, k) < 1e-14


def test_the_identity_is_measured_and_not_assumed(pair, monkeypatch):
    from kdbench.tracks.reasoning_rl.blocks import pitfalls

    monkeypatch.setattr(pitfalls, "mass", lambda logits, mask: 2 * mass(logits, mask))
    assert mass_identity(*pair[:2], 3) > 1e-3


def test_the_extra_term_drains_mass_out_of_the_support(pair):
    """Where student and teacher agree there is nothing to learn, and the truncated loss still drains the support."""
    student, _, targets = pair
    alike = (student, student.detach().clone(), targets)
    inside = support_mask(student, student, 3)
    slope = gradient(alike, "trunc", 3)
    assert bool((slope[inside] > 0).all())  # descent lowers these logits
    assert bool((slope[~inside] < 0).all())
    for form in ("trunc_sg", "renorm", "tail", "inter_sg", "sampled", "reverse"):
        assert torch.allclose(gradient(alike, form, 3), torch.zeros_like(student), atol=1e-12), form


def test_on_the_whole_vocabulary_all_differentiated_forms_are_the_reverse_divergence(pair):
    whole = gradient(pair, "reverse", 12)
    for form in ("trunc", "trunc_sg", "renorm", "inter_sg", "tail"):
        assert torch.allclose(gradient(pair, form, 12), whole, atol=1e-8), form


@pytest.fixture
def scored(make):
    task = make()
    model = task.student()
    made = task.rollouts(model, task.problems()[:3], group=2, generator=torch.Generator().manual_seed(0))
    return task, model, made, frozen_logits(task, task.teacher(), made.batch)


def test_the_bias_is_that_of_the_weights_gradient_on_the_same_batch(scored):
    _, model, made, theirs = scored
    assert gradient_bias(model, made, theirs, "reverse", 4) == pytest.approx(
        {"gradient_bias": 0.0, "gradient_cosine": 1.0}, abs=1e-5
    )
    found = {form: gradient_bias(model, made, theirs, form, 4) for form in ("trunc", "trunc_sg")}
    assert found["trunc"]["gradient_bias"] > found["trunc_sg"]["gradient_bias"] > 0
    assert all(weight.grad is None and weight.requires_grad for weight in model.parameters())
    own = frozen_logits(scored[0], model, made.batch)
    assert form_gradient(model, made, own, "reverse", 4).norm() < 1e-5


def test_a_frozen_student_has_a_bias_too(scored):
    _, model, made, theirs = scored
    frozen = gradient_bias(model.requires_grad_(False), made, theirs, "trunc", 4)
    assert frozen["gradient_bias"] > 0
    assert not any(weight.requires_grad for weight in model.parameters())


def test_the_mass_of_the_support(pair):
    student = pair[0]
    best = student.detach().softmax(-1).topk(3).values.sum(-1)
    assert torch.allclose(student_mass(student, 3), best)
    assert torch.allclose(student_mass(student, 12), torch.ones(6, dtype=torch.float64))


# --- prefixes and collapse --------------------------------------------------------------------------------------------


def judged(task, problems, texts, end=True):
    responses = task.encode_responses(texts)
    rows = responses if end else [row[:-1] for row in responses]
    return task.judged(problems, task.encode([task.prompt(problem) for problem in problems]), rows)


def test_collapse_counts_responses_without_an_end_and_repetitions(make):
    task = make()
    problems = task.problems()[:4]
    texts = [problems[0].solution, "1 2 " * 8, "1 2 3 4 5 6 7 8", "ans 3"]
    assert collapse(judged(task, problems, texts)) == 0.25
    assert collapse(judged(task, problems, texts, end=False)) == 1.0


class Endings:
    """In place of sampling: what follows each prefix is the rest of the worked solution, which counts as a teacher."""

    def __init__(self, task, problems):
        whole = task.encode_responses([problem.solution for problem in problems])
        asked = task.encode([task.prompt(problem) for problem in problems])
        self.rows = [prompt + response for prompt, response in zip(asked, whole, strict=True)]

    def __call__(self, model, prompts, **how):
        assert not how["metered"]
        by_start = [next((row for row in self.rows if row[: len(prompt)] == prompt), prompt) for prompt in prompts]
        return [row[len(prompt) :] for row, prompt in zip(by_start, prompts, strict=True)]


def test_a_teacher_goes_on_from_the_first_part_of_responses(make, monkeypatch):
    task = make()
    problems = task.problems("train", ["modchain"])[:4]
    wrong = f"think ; {problems[3].solution} 9"
    made = judged(task, problems, [problem.solution for problem in problems[:3]] + [wrong])
    assert made.correct.tolist() == [True, True, True, False]
    monkeypatch.setattr(task, "sample", Endings(task, problems))
    found = continuations(task, task.teacher(), made, (0.0, 0.5), generator=torch.Generator().manual_seed(0))
    assert found == {
        "continued/0/right": 1.0,
        "continued/0/wrong": 1.0,
        "continued/50/right": 1.0,
        "continued/50/wrong": 0.0,  # nobody goes on from a wrong beginning here
    }


# --- privileged information -------------------------------------------------------------------------------------------


def test_the_gap_is_measured_with_and_without_on_the_model_of_the_start(make, monkeypatch):
    task = make()
    problems, told = task.problems()[:2], ["with", "it"]
    values = {("before", False): 0.2, ("before", True): 0.7, ("after", False): 0.3}
    monkeypatch.setattr(
        task, "accuracy", lambda model, asked, prompts, **how: torch.tensor(values[model, prompts == told])
    )
    found = internalised(task, "before", "after", problems, told)
    assert found == pytest.approx(
        {"pi_gap": 0.5, "pi_gain": 0.1, "with_pi": 0.7, "without_pi": 0.3, "pi_share": 0.2}, abs=1e-6
    )
    values["before", True] = 0.2
    assert "pi_share" not in internalised(task, "before", "after", problems, told)


@pytest.mark.parametrize("rule", ["comma", "reverse"])
def test_following_a_rule_is_told_from_not_following_it(make, monkeypatch, rule):
    task = make()
    problems = [p for p in task.problems() if p.answer != " ".join(reversed(p.answer.split()))][:4]
    responses = [solution(p, rule=rule) for p in problems[:3]] + [problems[3].solution]
    made = judged(task, problems, responses)
    monkeypatch.setattr(task, "rollouts", lambda *rest, **how: made)
    assert rule_followed(task, None, problems, rule) == 0.75
    made = judged(task, problems, ["ans"] * 4)
    assert rule_followed(task, None, problems, rule) is None


@pytest.mark.parametrize("privileged", ["none", "reference", "rule"])
def test_only_the_teacher_reads_the_privileged_information(make, privileged):
    task = make()
    params = opd_pitfalls.OpdPitfallsParams(teacher="self", privileged=privileged)
    made = task.rollouts(task.student(), task.problems()[:2], generator=torch.Generator().manual_seed(0))
    plain = task.encode([task.prompt(problem) for problem in made.problems])
    assert made.prompts == plain
    batch = opd_pitfalls.batch_of(task, params, made)
    assert torch.equal(batch.input_ids, made.batch.input_ids) == (privileged == "none")
    added = int(batch.attention_mask.sum() - made.batch.attention_mask.sum())
    assert added == {"none": 0, "rule": 2}.get(privileged, added)
    assert int(batch.scored.sum()) == len(made.targets)


def test_rewards_are_judged_by_the_rule_that_the_student_is_not_told(make, monkeypatch):
    task = make()
    seen, verify = [], type(task.kind).verify

    def watched(self, problem, text, rule=None):
        seen.append(rule)
        return verify(self, problem, text, rule)

    monkeypatch.setattr(type(task.kind), "verify", watched)
    opd_pitfalls.train(task, opd_pitfalls.OpdPitfallsParams(teacher="self", privileged="rule", outcome=1.0))
    assert set(seen) == {None, "comma"}


# --- cells ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS)
def test_forms_share_rollouts_budget_and_one_path(make, form):
    task = make()
    task.prepare()
    student = opd_pitfalls.train(task, opd_pitfalls.OpdPitfallsParams(form=form, k=4, group=2))
    assert task.budget.spent["steps"] == 3
    assert task.budget.spent["teacher_queries"] == 3 * 4 * 2
    assert not torch.equal(next(student.parameters()), next(task.student().parameters()))


def test_a_job_explains_its_cell(run):
    found = run("reasoning_rl/opd_pitfalls", "mixed", group=2)
    extra = found.outcome.extra
    assert extra["mass_identity"] < 1e-6
    assert {"collapse", "support_mass", "gradient_bias", "gradient_cosine", "continued/50/wrong"} <= set(extra)
    assert found.column("support_mass")


@pytest.mark.parametrize(
    "cell",
    [
        {"teacher": "self", "privileged": "rule", "rule": "reverse"},
        {"teacher": "self", "privileged": "reference"},
        {"teacher": "peer_4", "start": "base"},
        {"teacher": "teacher_sft", "start": "stabilised", "form": "sampled", "outcome": 0.5},
    ],
)
def test_cells_of_the_grid(run, cell):
    extra = run("reasoning_rl/opd_pitfalls", "mixed", group=2, **cell).outcome.extra
    assert ("pi_gap" in extra) == ("privileged" in cell)
