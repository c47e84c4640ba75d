"""Recursive meta-distillation: base teachers, generations and their costs, bounds on what was trained."""

import json
from types import SimpleNamespace

import pytest
import torch

from kdbench.errors import UsageError
from kdbench_methods.vision import recursive_meta_distillation as method

Params = method.RecursiveMetaDistillationParams
SHORT = {"generations": 2, "generation_steps": 0.4, "replicas": 1, "pairs": 20}


def task(*names):
    teachers = {name: SimpleNamespace(target="label") for name in names} | {"hue": SimpleNamespace(target="hue")}
    return SimpleNamespace(spec=SimpleNamespace(name="t", all_teachers=lambda: teachers))


def test_base_teachers_are_those_of_the_labels():
    assert method.members_of(task("default", "vit"), Params()) == ["default", "vit"]
    assert method.members_of(task("default", "vit"), Params(members=["vit"])) == ["vit"]
    with pytest.raises(UsageError, match="no teachers"):
        method.members_of(task("default"), Params(members=["hue"]))
    with pytest.raises(UsageError, match="weights are one number for each"):
        method.members_of(task("default", "vit"), Params(weights=[1.0]))


def test_base_is_the_weighted_mean_of_probabilities():
    g = torch.Generator().manual_seed(0)
    logits = [torch.randn(4, 5, generator=g) for _ in range(2)]
    mean = method.base_of(logits, Params(weights=[3.0, 1.0]))
    torch.testing.assert_close(mean, 0.75 * logits[0].double().softmax(-1) + 0.25 * logits[1].double().softmax(-1))
    geometric = method.base_of(logits, Params(aggregate="geometric"))
    torch.testing.assert_close(geometric, ((logits[0] + logits[1]) / 2).double().softmax(-1), atol=1e-6, rtol=1e-6)
    assert mean.dtype == torch.float64


def test_unanchored_errors_accumulate_in_the_bound():
    chain = [{"tv": 0.2, "error": 0.0}, {"tv": 0.3, "error": 0.1}, {"tv": 0.35, "error": 0.1}]
    assert method.floor_part(Params(gamma=1.0), chain)["tv_floor_bound"] == pytest.approx(0.4)
    anchored = method.floor_part(Params(gamma=0.5), chain)
    assert anchored["tv_floor_bound"] == pytest.approx(0.5 * (0.5 * 0.2 + 0.1) + 0.1)
    assert anchored["floor_excess"] == pytest.approx(0.35 - 0.2)
    assert "floor_excess" not in method.floor_part(Params(operator="geometric"), chain)


@pytest.mark.parametrize("operator", ["linear", "geometric", "history"])
def test_generations_are_trained_and_bounded(smoke, tmp_path, operator):
    start = {"linear": "base", "geometric": "labels", "history": "random"}[operator]
    outcome = smoke(
        "recursive_meta_distillation", "shapetex-large-teacher", {**SHORT, "operator": operator, "start": start}
    )
    assert outcome.status == "ok", outcome.error
    assert outcome.cost["steps"] == 6
    trained = 2 + 1 + (start != "random")
    assert outcome.cost["aux_steps"] == 2 * trained
    extra = outcome.extra
    assert extra["kl_violation"] <= 1e-10
    assert extra["axiom_violation"] <= 1e-12
    assert extra["sampled_excess"] <= 1e-10
    assert extra["rate_over_gamma"] <= 1 + 1e-6
    if operator == "linear":
        assert extra["floor_excess"] <= 1e-6
        assert extra["tv_floor"] <= extra["tv_floor_bound"] + 1e-6
    rows = json.loads((tmp_path / "recursive_meta_distillation" / "artifacts" / "generations.json").read_text())
    assert [row["generation"] for row in rows] == [0, 1, 2]
    assert min(row["kl_base"] for row in rows) > 0


def test_without_an_anchor_the_target_is_the_last_student(smoke, monkeypatch):
    targets = []
    real = method.project
    monkeypatch.setattr(
        method,
        "project",
        lambda task, params, name, target, **more: targets.append(target) or real(task, params, name, target, **more),
    )
    functions = []
    real_function = method.function_of
    monkeypatch.setattr(
        method, "function_of", lambda task, model: functions.append(real_function(task, model)) or functions[-1]
    )
    params = {**SHORT, "gamma": 1.0, "members": ["vit", "medium"], "replicas": 0}
    outcome = smoke("recursive_meta_distillation", "shapetex-large-teacher", params)
    assert outcome.status == "ok", outcome.error
    assert len(targets) == 1 + 2 + 1
    for target, student in zip(targets[1:], functions, strict=True):
        torch.testing.assert_close(target, student)
