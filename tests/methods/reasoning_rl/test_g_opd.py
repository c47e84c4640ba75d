"""Generalised on-policy distillation: the advantage, the optimum, routing to experts, and what is reported."""

from __future__ import annotations

import pytest
import torch

from kdbench.losses.policy_gradient import clipped
from kdbench.tracks.reasoning_rl.blocks.experts import average, domains, experts_of, routed_answers, routed_logp
from kdbench.tracks.reasoning_rl.blocks.extrapolation import (
    advantage,
    ascend,
    objective,
    optimum_error,
    tilted,
    truncated_weights,
)
from kdbench.tracks.reasoning_rl.blocks.scoring import chosen, frozen_logits
from kdbench.tracks.reasoning_rl.data.specs import domain_of

LAMBDAS = (0.0, 0.5, 1.0, 1.25, 2.0)


@pytest.fixture
def three():
    """Logits (4, 5) of a policy, a base and a teacher, in float64."""
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(4, 5, generator=generator, dtype=torch.float64) * 2 for _ in range(3)]


# --- the advantage ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lam", LAMBDAS)
def test_the_advantage_is_the_papers(three, lam):
    old, base, teacher = (logits.log_softmax(-1) for logits in three)
    theirs = -((old - base) - lam * (teacher - base))
    assert torch.allclose(advantage(old, teacher, base, lam), theirs, atol=1e-14)


def test_at_one_the_base_has_no_part_in_it_to_the_last_bit(three):
    old, base, teacher = (logits.log_softmax(-1).float() for logits in three)
    gain = advantage(old, teacher, base, 1.0)
    assert torch.equal(gain, advantage(old, teacher, torch.full_like(base, -3.7), 1.0))
    assert torch.equal(gain, teacher - old)
    assert not torch.equal(advantage(old, teacher, base, 1.25), advantage(old, teacher, base + 1.0, 1.25))


@pytest.mark.parametrize("lam", LAMBDAS)
def test_the_expected_policy_gradient_is_that_of_the_objective(three, lam):
    """Summed over all tokens that could be sampled, by enumeration."""
    policy, base, teacher = three
    policy.requires_grad_()
    log_p = policy.log_softmax(-1)
    old = log_p.detach()
    gain = advantage(old, teacher.log_softmax(-1), base.log_softmax(-1), lam)
    (sampled,) = torch.autograd.grad((old.exp() * clipped(log_p, old, gain)).sum(), policy, retain_graph=True)
    (whole,) = torch.autograd.grad(-objective(log_p.exp(), base, teacher, lam).sum(), policy)
    assert torch.allclose(sampled, whole, atol=1e-12)


def test_the_advantage_has_no_gradient(three):
    old, base, teacher = (logits.requires_grad_() for logits in three)
    assert not advantage(old, teacher, base, 1.25).requires_grad
    assert not truncated_weights(old, base, 5.0).requires_grad


def test_weights_correct_the_samplers_distribution_and_are_truncated(three):
    policy, sampler, values = (logits.log_softmax(-1) for logits in three)
    plain = truncated_weights(policy, sampler, 1e9)
    assert torch.allclose((sampler.exp() * plain * values).sum(-1), (policy.exp() * values).sum(-1), atol=1e-12)
    assert float(plain.max()) > 5
    assert float(truncated_weights(policy, sampler, 5.0).max()) == 5.0
    assert torch.equal(truncated_weights(policy, policy, 5.0), torch.ones_like(policy))


# --- the optimum ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lam", LAMBDAS)
def test_a_softmax_trained_to_convergence_is_the_tilted_distribution(three, lam):
    start, base, teacher = three
    logits = start.clone().requires_grad_()
    limits = {"max_iter": 500, "tolerance_grad": 1e-14, "tolerance_change": 1e-18}
    optimizer = torch.optim.LBFGS([logits], line_search_fn="strong_wolfe", **limits)

    def closure():
        optimizer.zero_grad()
        loss = -objective(logits.softmax(-1), base, teacher, lam).sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    assert torch.allclose(logits.softmax(-1), tilted(base, teacher, lam).exp(), atol=1e-6)
    assert optimum_error(base, teacher, lam) < 1e-12


def test_the_optimum_is_the_teacher_at_one_the_base_at_zero_and_beyond_the_teacher_after(three):
    _, base, teacher = three
    assert torch.allclose(tilted(base, teacher, 1.0), teacher.log_softmax(-1), atol=1e-12)
    assert torch.allclose(tilted(base, teacher, 0.0), base.log_softmax(-1), atol=1e-12)
    beyond = tilted(base, teacher, 1.25).exp()
    best = (teacher.log_softmax(-1) - base.log_softmax(-1)).argmax(-1, keepdim=True)
    assert bool((beyond.gather(-1, best) > teacher.softmax(-1).gather(-1, best)).all())


def test_ascent_does_not_know_the_solution(three):
    _, base, teacher = three
    first, last = ascend(base, teacher, 1.25, steps=1), ascend(base, teacher, 1.25)
    values = [float(objective(found.exp(), base, teacher, 1.25).sum()) for found in (first, last)]
    assert values[0] < values[1]
    assert not torch.allclose(first, tilted(base, teacher, 1.25), atol=1e-2)


# --- experts ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def mixed(make):
    task = make()
    problems = task.problems()[:4]
    assert set(domains(problems)) == {"arith", "logic"}
    rollouts = task.rollouts(task.student(), problems, group=2, generator=torch.Generator().manual_seed(0))
    return task, rollouts


def test_each_response_is_scored_by_the_expert_of_its_domain(mixed):
    task, rollouts = mixed
    experts = {"arith": task.checkpoint("teacher_sft"), "logic": task.checkpoint("peer_1")}
    found = routed_logp(task, experts, rollouts)
    for row, problem in enumerate(rollouts.problems):
        which = rollouts.sequence == row
        for name, expert in experts.items():
            alone = chosen(frozen_logits(task, expert, rollouts.batch), rollouts.targets)[which]
            assert torch.allclose(found[which], alone, atol=1e-4) == (name == domain_of(problem.family))


def test_routing_costs_one_forward_a_response(mixed):
    task, rollouts = mixed
    experts = experts_of(task)
    task.budget.set("teacher_queries", 0)
    task.budget.set("teacher_tokens", 0)
    routed_logp(task, experts, rollouts)
    assert task.budget.spent["teacher_queries"] == len(rollouts)
    assert task.budget.spent["teacher_tokens"] == len(rollouts.sequence)


def test_answers_come_from_the_expert_of_each_domain(mixed, monkeypatch):
    task, _ = mixed
    asked, rollouts = [], type(task).rollouts

    def watched(self, model, problems, **how):
        asked.append((model, {problem.family for problem in problems}))
        return rollouts(self, model, problems, **how)

    monkeypatch.setattr(type(task), "rollouts", watched)
    experts = experts_of(task)
    made = routed_answers(task, experts, task.problems()[:6], generator=torch.Generator().manual_seed(0))
    assert [domain_of(*families) for _, families in asked] == ["arith", "logic"] == list(experts)
    assert all(model is expert for (model, _), expert in zip(asked, experts.values(), strict=True))
    assert sorted(problem.index for problem in made.problems) == list(range(6))


def test_an_average_of_experts_is_the_mean_of_their_weights(make):
    task = make()
    experts = [task.checkpoint("peer_1"), task.checkpoint("peer_2")]
    mean = average(experts, [1.0, 3.0], task.checkpoint("peer_1", trainable=True)).state_dict()["lm_head.weight"]
    a, b = (expert.state_dict()["lm_head.weight"] for expert in experts)
    assert torch.allclose(mean, 0.25 * a + 0.75 * b, atol=1e-6)
    assert not torch.allclose(a, b, atol=1e-3)
    with pytest.raises(ValueError, match="as many shares"):
        average(experts, [1.0], task.student())


# --- jobs -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def weights(make, registry):
    """``weights(name, **params)``: of the student after training with a method, every method on the same samples."""
    from importlib import import_module

    def trained(name, **params):
        task = make()
        module = import_module(f"kdbench_methods.reasoning_rl.{name}")
        kind = next(value for key, value in vars(module).items() if key.endswith("Params") and key != "Params")
        task.prepare()
        student = module.train(task, kind(**params))
        return torch.cat([weight.detach().flatten() for weight in student.parameters()])

    return trained


def test_at_one_training_does_not_depend_on_the_base_and_is_sampled_distillation(weights):
    ours = weights("g_opd", lam=1.0, group=8)
    assert torch.equal(ours, weights("g_opd", lam=1.0, group=8, base="teacher_sft"))
    assert torch.allclose(ours, weights("opd", form="sampled"), atol=1e-5)
    assert not torch.allclose(ours, weights("g_opd", lam=1.25, group=8), atol=1e-5)


def test_the_base_is_a_network_that_is_not_trained(weights, monkeypatch):
    from kdbench.tracks.reasoning_rl.task import ReasoningTask

    asked, checkpoint = [], ReasoningTask.checkpoint

    def watched(self, name, **how):
        found = checkpoint(self, name, **how)
        asked.append((name, any(weight.requires_grad for weight in found.parameters())))
        return found

    monkeypatch.setattr(ReasoningTask, "checkpoint", watched)
    one = weights("g_opd")
    assert asked == [("student_sft", False)]
    assert not torch.equal(one, weights("g_opd", base="teacher_sft"))


def test_a_job_has_many_problems_with_one_response_each(run):
    result = run("reasoning_rl/g_opd", "mixed")
    assert result.outcome.cost["samples"] == 3 * 8 * 4
    extra = result.outcome.extra
    assert {"acc/arith", "acc/logic", "gain/arith", "gain/logic", "kl_base"} <= set(extra)
    assert extra["optimum_error"] < 1e-8
    assert extra["kl_base"] > 0
    assert result.column("base_gap")[0] == pytest.approx(0.0, abs=1e-4)  # at the start the student is the base
    assert result.column("teacher_gap")


@pytest.mark.parametrize("slug", ["expert_average", "seqkd_experts"])
def test_baselines_of_several_experts_run(run, slug):
    result = run(f"reasoning_rl/{slug}", "mixed")
    assert 0 <= result.outcome.metrics["acc"] <= 1


def test_experts_other_temperatures_and_minibatches(run):
    result = run("reasoning_rl/g_opd", "mixed", teachers="experts", temperature=1.3)
    assert result.outcome.cost["teacher_queries"] == 2 * 3 * 8 * 4
    run("reasoning_rl/g_opd", "mixed", minibatches=2)
    with pytest.raises(AssertionError, match="set minibatches or temperature to 1"):
        run("reasoning_rl/g_opd", "mixed", minibatches=2, temperature=1.3)
