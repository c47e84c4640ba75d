"""Uni-Instruct: what it is made of, and its phases."""

from __future__ import annotations

import pytest

from kdbench.cache import Cache
from kdbench_methods.diffusion import sid_few_step, uni_instruct
from tests.helpers.denoisers import same_weights, smoke_task


def test_reverse_kl_without_adversary_is_score_identity_distillation_bit_for_bit(tmp_path):
    cache = Cache(tmp_path / "cache")
    shared = {"least": 0.0, "most": 0.8}
    params = uni_instruct.UniInstructParams(divergence="rkl", gan_weight=0, alone=0, **shared)
    uni = uni_instruct.train(smoke_task("ring", tmp_path / "one", cache), params).experts[0]
    task = smoke_task("ring", tmp_path / "two", cache)
    sid = sid_few_step.train(task, sid_few_step.SidFewStepParams(steps=1, alpha=1.0, **shared)).experts[0]
    assert same_weights(uni, sid)
    assert task.budget.spent["real_images"] == 0
    assert not same_weights(uni, task.student())


def test_the_fake_score_learns_alone_at_first(run):
    found = run("diffusion/uni_instruct", "digits", alone=0.5)
    cost = found.outcome.cost
    assert (cost["steps"], cost["critic_updates"]) == (12, 6 + 3)
    assert cost["real_images"] == (6 + 6) * 8
    assert len(found.column("alone/score")) == 6
    assert len(found.column("score")) == 3
    assert len(found.column("alone/gan")) == 6
    assert found.outcome.extra["h_min"] <= found.outcome.extra["h_max"]


@pytest.mark.parametrize(
    "params", [{"divergence": "js"}, {"divergence": "chi2", "second": "theorem"}, {"divergence": "jf", "base": False}]
)
def test_divergences(run, params):
    found = run("diffusion/uni_instruct", "ring", alone=0, warmup=0, **params)
    assert {"divergence_found", "divergence_exact", "log_ratio_correlation"} <= set(found.outcome.extra)
    assert found.outcome.extra["divergence_exact"] > 0


@pytest.mark.parametrize("after", [2, 4])
def test_an_interrupted_training_goes_on_in_its_phase(interrupted, after):
    interrupted("diffusion/uni_instruct", "digits", after, alone=0.25)
