"""The baselines of the track."""

from __future__ import annotations

import pytest
import torch

METHODS = ["base", "teacher", "sft_gold", "seqkd", "kd_fwd", "gkd", "opd", "grpo", "rft"]


def scored(run, slug, task="mixed", **params):
    return run(f"reasoning_rl/{slug}", task, **params).outcome


@pytest.mark.parametrize("slug", METHODS)
def test_every_baseline_ends_with_all_metrics(run, slug):
    outcome = scored(run, slug)
    assert outcome.status == "ok", outcome.error
    assert {"acc", "pass_8", "ood_family", "retain", "kl_teacher"} <= set(outcome.metrics)


def test_what_is_generated_is_the_same_for_methods_of_one_shape(run):
    spent = {slug: scored(run, slug).cost["generated_tokens"] for slug in ("grpo", "opd", "gkd")}
    prompts, group, steps, longest = 4, 8, 3, 20
    assert all(0 < tokens <= prompts * group * steps * longest for tokens in spent.values())
    assert "generated_tokens" not in scored(run, "sft_gold").cost
    assert scored(run, "seqkd").cost["teacher_tokens"] > 0


@pytest.mark.parametrize("form", ["forward", "sampled", "trunc", "trunc_sg", "renorm", "tail", "inter_sg"])
def test_every_form_of_on_policy_distillation_trains(run, form):
    assert scored(run, "opd", form=form).status == "ok"


def test_more_updates_a_batch_are_clipped(run):
    result = run("reasoning_rl/grpo", "mixed", minibatches=2)
    assert result.outcome.status == "ok", result.outcome.error
    assert any("clipped" in row for row in result.curve)


def test_group_scaling_and_aggregation_change_the_result(run):
    plain = scored(run, "grpo").metrics["kl_teacher"]
    assert scored(run, "grpo", scale="none", aggregation="const").metrics["kl_teacher"] != plain


def test_a_task_of_another_reward_trains(make):
    from kdbench.tracks.reasoning_rl.blocks.recipes import fit_on_policy, grpo_terms, policy_logp

    task = make()
    student = task.student()
    before = [p.clone() for p in student.parameters()]
    fit_on_policy(task, student, lambda m, r: grpo_terms(r, policy_logp(m, r)), group=2, reward="rubric")
    assert all(torch.isfinite(p).all() for p in student.parameters())
    assert len(before) == len(list(student.parameters()))
