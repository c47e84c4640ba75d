"""SinKD: the term, its invariance and limits, top-k events, and whole jobs."""

from __future__ import annotations

import json

import pytest
import torch

from kdbench.losses.divergences import tvd
from kdbench.tracks.llm.batches import TokenLogits
from kdbench.tracks.llm.outputs import top_events
from kdbench_methods.llm.sinkd import SinkdParams, bias, distance


def logits(*shape: int, seed: int = 0) -> torch.Tensor:
    return 2 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def positions(student: torch.Tensor, teacher: torch.Tensor, **rest: torch.Tensor) -> TokenLogits:
    count = torch.arange(len(student))
    return TokenLogits(student, teacher, count.double, count, count, **rest)


def value(student, teacher, **params) -> float:
    with torch.no_grad():
        return distance(positions(student, teacher), SinkdParams(**params)).item()


STUDENT, TEACHER = logits(24, 6), logits(24, 6, seed=1)
ORDER = torch.randperm(24, generator=torch.Generator().manual_seed(2))


# --- the term ---------------------------------------------------------------------------------------------------------


def test_the_term_by_hand():
    q, p = (STUDENT / 2).softmax(-1), (TEACHER / 2).softmax(-1)
    cost = (q[:, None] - p[None]).abs().sum(-1)
    plan = (-cost / 0.1).exp()
    for _ in range(20):
        plan = plan / plan.sum(1, keepdim=True)
        plan = plan / plan.sum(0, keepdim=True)
    assert value(STUDENT, TEACHER) == pytest.approx((plan * cost).sum().item())


def test_the_teachers_order_does_not_matter_unless_the_sets_are_small():
    assert value(STUDENT, TEACHER[ORDER]) == pytest.approx(value(STUDENT, TEACHER), rel=1e-9)
    assert value(STUDENT, TEACHER[ORDER], rows=1) != pytest.approx(value(STUDENT, TEACHER, rows=1), rel=1e-3)


def test_the_teacher_gets_no_gradient_and_the_student_that_of_the_whole_computation():
    student, teacher = STUDENT[:5, :3].clone().requires_grad_(), TEACHER[:5, :3].clone().requires_grad_()
    for params in (SinkdParams(), SinkdParams(debiased=True), SinkdParams(over="vocabulary")):
        assert torch.autograd.gradcheck(lambda z, params=params: distance(positions(z, teacher), params), student)
    distance(positions(student, teacher), SinkdParams()).backward()
    assert teacher.grad is None
    assert student.grad.abs().sum() > 0


def test_pairs_cost_their_l1_distance_and_so_does_transport_within_a_sample():
    variation = 2 * tvd(STUDENT / 2, TEACHER / 2).sum().item()
    assert value(STUDENT, TEACHER, rows=1) == pytest.approx(variation)
    assert value(STUDENT, TEACHER, over="vocabulary", eps=0.2, iterations=1000) == pytest.approx(variation, rel=1e-3)


def test_smaller_sets_have_the_same_mass_and_larger_cost_without_regularisation():
    sharp = {"eps": 0.02, "iterations": 400}
    costs = [value(STUDENT, TEACHER, rows=rows, **sharp) for rows in (1, 8, 0)]
    assert costs == sorted(costs, reverse=True)
    parts = [value(STUDENT[i : i + 7], TEACHER[i : i + 7]) for i in range(0, 24, 7)]  # the last set is smaller
    assert value(STUDENT, TEACHER, rows=7) == pytest.approx(sum(parts))


def test_equal_sets_cost_nothing_in_the_limit_or_debiased():
    close = TEACHER[:, :2] / 4
    biases = [bias(positions(close, close), SinkdParams(eps=eps)) for eps in (0.1, 0.02)]
    assert biases[0] > 0.02
    assert biases[1] < biases[0] / 3
    assert value(close[ORDER], close, debiased=True) == pytest.approx(0, abs=1e-9)
    assert value(close, close) == pytest.approx(24 * biases[0])


# --- top-k events -----------------------------------------------------------------------------------------------------


def test_with_all_tokens_as_events_the_costs_are_those_of_full_outputs():
    values, ids = top_events(TEACHER, 5)  # the sixth is all others
    kept = positions(values, values, logits=STUDENT, events=ids)
    assert distance(kept, SinkdParams()).item() == pytest.approx(value(STUDENT, TEACHER), rel=1e-4)


# --- whole jobs -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("params", "other"),
    [({"alpha": 0.0, "beta": 0.0}, "sft"), ({"alpha": 1.0, "beta": 0.0, "temperature": 1.0}, "kd_fkl")],
)
def test_without_the_term_it_is_training_on_labels_or_distillation(run, params, other):
    task = "classify-reviews"
    assert run("sinkd", task, **params).outcome.metrics == run(other, task).outcome.metrics


@pytest.mark.parametrize("task", ["classify-docstrings", "instruct"])
def test_a_job_measures_transport_bias_and_overlap(run, tmp_path, task):
    result = run("sinkd", task, weight=0.01)
    extra = result.outcome.extra
    assert extra["permutation_error"] < 1e-3
    assert 0 < extra["sinkhorn_8"] <= 2
    assert 0 < extra["matched_mass"] <= 1
    assert 0 <= extra["bias_002"] < extra["bias_01"]
    assert len(result.column("bias")) == len(result.column("sinkhorn"))
    table = json.loads(next(tmp_path.rglob("overlap.json")).read_text())
    assert [row["overlap"] for row in table] == sorted(row["overlap"] for row in table)


def test_the_term_changes_what_is_learned(run):
    plain = run("sinkd", "classify-reviews", beta=0.0).outcome.metrics
    for params in ({"over": "vocabulary"}, {"rows": 4, "debiased": True}):
        assert run("sinkd", "classify-reviews", weight=1.0, **params).outcome.metrics != plain
