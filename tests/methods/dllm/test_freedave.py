"""FreeDave as a method: it says how far drafts get, and its text is that of one token per step."""

from __future__ import annotations

import pytest


@pytest.mark.parametrize("task", ["fixed", "arith"])
@pytest.mark.parametrize("params", [{}, {"drafts": 8}, {"eager": True}])
def test_a_job_is_lossless_and_takes_fewer_forwards(run, task, params):
    found, static = run("dllm/freedave", task, **params).outcome, run("dllm/seq", task).outcome
    assert found.metrics["agreement"] == 1
    assert found.metrics["accuracy"] == static.metrics["accuracy"]
    assert found.metrics["nfe"] < static.metrics["nfe"]
    assert found.extra["accepted"] > 0
    assert found.metrics["sequences"] > found.metrics["nfe"]
    assert found.metrics["nfe"] == pytest.approx(found.extra["rounds"] + 1)


def test_with_a_cache_it_forwards_less(run):
    plain, cached, tree = (
        run("dllm/freedave", "arith", **params).outcome.metrics
        for params in ({}, {"cached": True}, {"cached": True, "tree": True})
    )
    assert cached["forwarded_tokens"] < plain["forwarded_tokens"]
    assert tree["nfe"] == cached["nfe"]
    assert tree["sequences"] < cached["sequences"]


def test_with_a_threshold_draft_one_is_that_of_the_threshold(run):
    alone = run("dllm/freedave", "arith", drafts=1, threshold=0.3).outcome.metrics
    parallel = run("dllm/threshold", "arith", gamma=0.3).outcome.metrics
    assert alone["nfe"] == parallel["nfe"]
    assert alone["agreement"] == parallel["agreement"]
