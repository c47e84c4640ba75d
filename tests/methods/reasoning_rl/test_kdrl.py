"""KDRL: its two terms, what joins them, and the identities of its ends."""

from __future__ import annotations

import pytest
import torch

from kdbench.losses.kl_estimates import as_reward
from kdbench.tracks.reasoning_rl.blocks.opd import per_token
from kdbench.tracks.reasoning_rl.blocks.recipes import grpo_terms, policy_logp
from kdbench.tracks.reasoning_rl.blocks.scoring import chosen
from kdbench_methods.reasoning_rl import kdrl


@pytest.fixture
def sampled(make):
    task = make()
    model = task.student()
    made = task.rollouts(model, task.problems()[:3], group=4, generator=torch.Generator().manual_seed(0))
    made.reward = torch.arange(12.0)
    return task, model, made


def logits(made, seed, size=17):
    generator = torch.Generator().manual_seed(seed)
    made_of = torch.randn(len(made.sequence), size, generator=generator, dtype=torch.float64)
    made.__dict__["targets"] = torch.randint(size, (len(made.sequence),), generator=generator)
    return made_of


def gradient(value, of):
    return torch.autograd.grad(value, of, retain_graph=True)[0]


def test_without_the_divergence_it_is_grpo_to_the_last_bit(run):
    both = [
        run("reasoning_rl/kdrl", "mixed", coefficient="given", start=0.0, least=0.0).outcome,
        run("reasoning_rl/grpo", "mixed").outcome,
    ]
    assert both[0].metrics == both[1].metrics
    assert "teacher_tokens" not in both[0].cost


def test_with_no_advantage_the_gradient_is_that_of_sampled_distillation_on_every_token(sampled):
    _, _, made = sampled
    student = logits(made, 0).requires_grad_()
    teacher = logits(made, 1)
    mine = kdrl.divergence("k2", student, teacher, made, 8)
    other = per_token("sampled", student, teacher, made.targets)
    for token in range(len(mine)):
        assert torch.allclose(gradient(mine[token], student), gradient(other[token], student), atol=1e-14)


def test_estimators_differ_in_their_gradient(sampled):
    _, _, made = sampled
    student = logits(made, 0).requires_grad_()
    teacher = logits(made, 1)
    found = {
        kind: gradient(kdrl.divergence(kind, student, teacher, made, 4).mean(), student)
        for kind in ("k1", "k2", "k3", "exact", "topk")
    }
    assert torch.allclose(found["k1"], found["k2"], atol=1e-15)
    assert not torch.allclose(found["k2"], found["k3"], atol=1e-4)
    assert not torch.allclose(found["exact"], found["topk"], atol=1e-4)


def test_masks_are_keyed_to_correctness(sampled):
    task, _, made = sampled
    problem_of = made.problems
    gold = task.encode_responses([problem_of[i].solution for i in (0, 5)])
    rows = [gold[0] if i == 0 else gold[1] if i == 5 else task.encode_responses(["ans ok"])[0] for i in range(12)]
    judged = task.judged(problem_of, made.prompts, rows)
    judged.group = made.group
    assert kdrl.kept(judged, "none").tolist() == [1.0] * 12
    assert kdrl.kept(judged, "response").tolist() == [0.0, 1, 1, 1, 1, 0, 1, 1, 1, 1, 1, 1]
    assert kdrl.kept(judged, "group").tolist() == [0.0] * 8 + [1.0] * 4


def test_shaped_rewards_have_the_sum_of_the_gaps_before_the_normalisation(sampled):
    _, model, made = sampled
    with torch.no_grad():
        logp = policy_logp(model, made)
    other = logp - 0.1  # a gap of 0.1 a token: longer responses lose more
    found = kdrl.shaped(made, logp, other, 2.0, torch.ones(12))
    reward = made.reward - 0.2 * made.lengths
    for rows in (range(4), range(4, 8), range(8, 12)):
        part = reward[list(rows)]
        assert torch.allclose(found[list(rows)], (part - part.mean()) / (part.std() + 1e-4), atol=1e-4)
    plain = kdrl.shaped(made, logp, other, 2.0, torch.zeros(12))
    assert not torch.allclose(found, plain)


def weight(**params):
    return kdrl.Coefficient(kdrl.KdrlParams(**params), 100)


def test_the_coefficient_falls_linearly_once_a_step_and_stays():
    found = weight(coefficient="given", start=0.5, least=0.1, fall=0.5)
    values = []
    for step in range(101):
        found.count(step)
        values.append(found.value)
    assert values[0] == 0.5
    assert values[25] == pytest.approx(0.3)
    assert values[50] == values[100] == pytest.approx(0.1)
    assert weight(coefficient="given", start=0.05, least=0.1).value == 0.05


def test_the_unit_makes_the_gradients_as_large_as_start_says(sampled):
    _, model, made = sampled
    logp = policy_logp(model, made)
    policy, kd = grpo_terms(made, logp), as_reward(logp, logp.detach() - 0.5).mean()
    found = weight(start=0.5)
    assert found.value == 1.0
    found.measure(policy, kd, model)
    norms = [kdrl.gradient_norm(value, model) for value in (policy, found.value * kd)]
    assert norms[1] == pytest.approx(0.5 * norms[0], rel=1e-4)
    unit = found.unit
    found.measure(policy, 2 * kd, model)
    assert found.unit == unit
    blank = weight()
    blank.measure(0 * policy, kd, model)
    assert blank.unit == 0


def test_the_divergence_uses_the_teacher_on_the_students_tokens(sampled):
    _, _, made = sampled
    student, teacher = logits(made, 0), logits(made, 1)
    gap = chosen(student, made.targets) - chosen(teacher, made.targets)
    assert torch.allclose(kdrl.divergence("k2", student, teacher, made, 8), gap.square() / 2)


@pytest.mark.parametrize(
    "params",
    [
        {},
        {"unify": "reward_shaping", "estimator": "k1"},
        {"mask": "group", "estimator": "k3"},
        {"mask": "response", "estimator": "topk"},
        {"estimator": "exact", "coefficient": "given", "start": 0.005, "least": 0.001},
    ],
)
def test_every_variant_trains_and_says_its_coefficient(run, params):
    result = run("reasoning_rl/kdrl", "mixed", **params)
    assert result.outcome.status == "ok", result.outcome.error
    assert all(value > 0 for value in result.column("coefficient"))


def test_an_interrupted_job_ends_alike(interrupted):
    interrupted("reasoning_rl/kdrl", "mixed", 2)
