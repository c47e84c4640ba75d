"""MoDE: cached experts change nothing, dense transformers are its special case, the balance loss is in the sum."""

from __future__ import annotations

import pytest


def test_caching_gives_the_same_actions_for_fewer_flops(run):
    extra = run("policy/mode_policy", "desk", steps=3).outcome.extra
    assert extra["cache_error"] < 1e-4
    assert extra["cache_flops_share"] < 1
    assert extra["active_parameters"] < extra["total_parameters"]
    assert 1 <= extra["experts_used"] <= 4


def test_one_expert_is_dense_and_has_nothing_to_balance(run):
    result = run("policy/mode_policy", "desk", steps=2, experts=1, top_k=1, expansion=4)
    extra = result.outcome.extra
    assert extra["active_parameters"] == extra["total_parameters"]
    assert result.column("balance")[-1] == pytest.approx(0.01)  # E x 1 x 1, with its weight
    assert extra["experts_used"] == pytest.approx(1.0)


def test_routing_by_tokens_is_not_cached(run):
    extra = run("policy/mode_policy", "desk", steps=2, router="token").outcome.extra
    assert extra["cache_flops_share"] == 1.0
    assert extra["cache_error"] == 0.0
