"""MLKD: the choice of layers, its identities, and whole jobs on text with an out-of-distribution part."""

from __future__ import annotations

import json

import pytest
import torch
from torch.nn import functional as F
from transformers import GPT2Config, GPT2LMHeadModel

from kdbench.errors import UsageError
from kdbench.tracks.llm.networks.taps import Taps
from kdbench_methods.llm.mlkd_ood_text import Bridge, MlkdParams, middle

TASK = "text-ood"


def network(layers: int, width: int) -> GPT2LMHeadModel:
    return GPT2LMHeadModel(GPT2Config(vocab_size=16, n_embd=width, n_layer=layers, n_head=2, n_positions=16))


def taps(layers: int, width: int, seed: int) -> Taps:
    draw = torch.Generator().manual_seed(seed)
    states = tuple(torch.randn(2, 5, width, generator=draw) for _ in range(layers))
    scored = torch.ones(2, 5, dtype=torch.bool)
    scored[:, -1] = False
    return Taps(states, torch.zeros(8, 16), scored)


def bridge(student: int = 4, teacher: int = 4, widths: tuple[int, int] = (8, 8), **params) -> Bridge:
    torch.manual_seed(0)
    return Bridge(MlkdParams(**params), network(student, widths[0]), network(teacher, widths[1]))


def test_the_middle_of_twelve_layers_is_that_of_the_paper():
    assert range(12)[middle(MlkdParams(), 12)] == range(2, 9)
    assert range(4)[middle(MlkdParams(), 4)] == range(3)
    assert range(4)[middle(MlkdParams(first=2, last=4), 4)] == range(1, 4)
    with pytest.raises(UsageError, match="not layers of a student of 4"):
        middle(MlkdParams(first=3, last=5), 4)


@pytest.mark.parametrize("projection", ["teacher", "student", "both", "none"])
def test_all_pairs_with_weights_of_one_are_the_plain_sum(projection):
    net = bridge(layer_map="nearest", keep=4, slots="fixed", projection=projection)
    student, teacher = taps(4, 8, 1), taps(4, 8, 2)
    scored = student.scored
    plain = sum(
        F.mse_loss(net.of_student(mine[scored]), net.of_teacher(theirs[scored]))
        for mine in student.layers[:3]
        for theirs in teacher.layers
    )
    assert net(student, teacher).mean().item() == pytest.approx(plain.item(), rel=1e-5)


def test_each_token_keeps_the_two_teacher_layers_that_are_nearest_to_each_layer():
    net = bridge(projection="none")
    student, teacher = taps(4, 8, 1), taps(4, 8, 2)
    by_hand = torch.zeros(8)
    for mine in student.layers[:3]:
        rows = torch.stack([(mine - theirs)[student.scored].square().mean(-1) for theirs in teacher.layers])
        by_hand += rows.sort(dim=0).values[:2].sum(0)
    assert torch.allclose(net(student, teacher), by_hand, atol=1e-5)
    teacher.layers[1][0] = student.layers[0][0] + 0.01  # the first text only
    shares = torch.tensor(net.shares(student, teacher, None))
    assert shares.sum(1).tolist() == pytest.approx([1.0] * 3)
    assert 0.25 <= shares[0, 1] < 0.5


def test_gradients_reach_student_map_and_weights_but_not_the_teacher():
    net = bridge(widths=(8, 12))
    student, teacher = taps(4, 8, 1), taps(4, 12, 2)
    for layer in (*student.layers, *teacher.layers):
        layer.requires_grad_()
    net(student, teacher).sum().backward()
    assert all(layer.grad is not None for layer in student.layers[:3])
    assert student.layers[3].grad is None, "outside the middle"
    assert all(layer.grad is None for layer in teacher.layers)
    assert net.of_teacher.weight.grad.abs().sum() > 0
    assert (net.slots.raw.grad > 0).all(), "every weight shrinks as the loss falls"
    with pytest.raises(UsageError, match="8 wide"):
        bridge(widths=(8, 12), projection="none")(student, teacher)


# --- whole jobs -------------------------------------------------------------------------------------------------------


def test_predictions_alone_are_ordinary_distillation(run):
    assert run("mlkd_ood_text", TASK, intermediate=0.0).outcome.metrics == run("kd_fkl", TASK).outcome.metrics
    hard = run("mlkd_ood_text", TASK, intermediate=0.0, prediction=0.0, hard=1.0).outcome.metrics
    assert hard == run("sft", TASK).outcome.metrics


def test_a_job_learns_weights_and_measures_the_identity_and_machine_text(run, tmp_path):
    result = run("mlkd_ood_text", TASK)
    extra, metrics = result.outcome.extra, result.outcome.metrics
    assert extra["identity_error"] < 1e-4
    assert 0 <= extra["auroc_machine"] <= 1
    assert 0 <= extra["pair_accuracy"] <= 1
    assert result.column("slot_mean")[-1] < 1
    slots = json.loads(next(tmp_path.rglob("slots.json")).read_text())
    assert len(slots["weights"]) == 2
    assert [sum(row) for row in slots["teacher_layers"]] == pytest.approx([1.0])
    rows = json.loads(next(tmp_path.rglob("rows.json")).read_text())
    inside = [row["student"] for row in rows if row["domain"] == "facts"]
    foreign = [row["student"] for row in rows if row["domain"] != "facts"]
    found = [(b > a) + 0.5 * (a == b) for a in inside for b in foreign]
    assert metrics["auroc"] == pytest.approx(sum(found) / len(found))


def test_the_choice_of_layers_changes_what_is_learned(run):
    plain = run("mlkd_ood_text", TASK, slots="fixed").outcome.metrics
    for params in ({"layer_map": "random", "keep": 1}, {"projection": "none"}):
        assert run("mlkd_ood_text", TASK, slots="fixed", **params).outcome.metrics != plain


def test_a_loss_without_terms_is_refused():
    from kdbench_methods.llm.mlkd_ood_text import train

    with pytest.raises(UsageError, match="one of prediction"):
        train(None, MlkdParams(prediction=0.0, intermediate=0.0))
