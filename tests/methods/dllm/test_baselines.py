"""The baselines: what they return, what they learn, what it costs."""

from __future__ import annotations

import pytest
import torch

from kdbench.registry import discover, load_method, method_manager, params_class
from kdbench.tracks.dllm.decoders.policy import PolicyDecoder
from kdbench.tracks.dllm.policies.basic import All, Factor, Threshold, TopK
from kdbench.tracks.dllm.task import DllmTask


@pytest.fixture
def task(tmp_path):
    spec = discover().task("dllm/fixed", "smoke")
    return DllmTask(spec, seed=0, method="dllm/probe", folder=tmp_path)


def trained(task, slug, **params):
    registry = discover()
    found = registry.method(slug, "dllm")
    module = load_method(found.path, found.module)
    return method_manager(module, registry).hook.train(task=task, params=params_class(module)(**params))


@pytest.mark.parametrize(
    ("slug", "params", "policy"),
    [
        ("seq", {}, TopK(1)),
        ("topk", {"k": 3, "order": "margin"}, TopK(3, "margin")),
        ("threshold", {"gamma": 0.7}, Threshold(0.7)),
        ("factor", {"factor": 0.5}, Factor(0.5)),
        ("full_parallel", {}, All()),
    ],
)
def test_policies_write_with_the_teacher(task, slug, params, policy):
    decoder = trained(task, slug, **params)
    assert isinstance(decoder, PolicyDecoder)
    assert decoder.net is task.teacher()
    assert decoder.policy == policy
    assert task.budget.spent == {}
    assert policy in decoder.sweep


def test_one_token_per_step_is_a_curve_of_one_point(task):
    assert len(trained(task, "seq").frontier()) == 1
    assert len(trained(task, "threshold").frontier()) == 7


def test_a_student_of_the_same_canvas_has_nothing_to_learn_at_first(task):
    """Forward KL of two equal networks is 0 and so is its gradient: AdamW's decay alone moves the weights."""
    decoder = trained(task, "kd_rand", lr=1e-6)
    assert task.budget.spent["steps"] == 4
    assert task.budget.spent["teacher_queries"] == 16
    pairs = zip(decoder.net.parameters(), task.teacher().parameters(), strict=True)
    assert all((one - other).abs().max() < 1e-5 for one, other in pairs)


def test_a_teacher_that_sees_more_is_another_teacher(task):
    task.flush()
    plain, revealed = trained(task, "kd_rand", lr=0.01), None
    again = DllmTask(task.spec, seed=0, method="dllm/probe", folder=task.folder)
    revealed = trained(again, "kd_rand", lr=0.01, reveal=0.5)
    pairs = zip(plain.net.parameters(), revealed.net.parameters(), strict=True)
    assert any(not torch.equal(one, other) for one, other in pairs)


def test_more_training_changes_the_student_and_not_the_teacher(task):
    before = [parameter.clone() for parameter in task.teacher().parameters()]
    decoder = trained(task, "sft", lr=0.01)
    pairs = list(zip(before, task.teacher().parameters(), decoder.net.parameters(), strict=True))
    assert all(torch.equal(old, kept) for old, kept, _ in pairs)
    assert any(not torch.equal(old, new) for old, _, new in pairs)


def test_the_causal_reference_takes_a_forward_for_each_token(run):
    found = run("dllm/ar_ref", "fixed").outcome.metrics
    assert found["nfe"] == found["length"]
    assert found["tpf"] == 1
