"""ProKD: its two stages, what each variant leaves out, and what evaluation says of teacher, prototypes and labels."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from kdbench.errors import UsageError
from kdbench.losses.prototypes import Prototypes, unit
from kdbench_methods.llm.prokd_ner import OUTSIDE, ProkdNerParams, class_weights, distance, pseudo_labels, train

PLAIN = {"align": 0.0, "teacher_steps": 0.0, "self_training": "none"}


def draws(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_what_o_weighs_and_when_it_is_left_out():
    few, many = torch.tensor([OUTSIDE, 1, 2, 3]), torch.tensor([OUTSIDE, OUTSIDE, OUTSIDE, 3])
    params = ProkdNerParams(o_weight=0.25, o_limit=0.5)
    assert class_weights(few, params).tolist() == [0.25] + [1.0] * 8
    assert class_weights(many, params).tolist() == [0.0] + [1.0] * 8
    assert class_weights(many, ProkdNerParams(o_weight=0.25, o_limit=1.0))[OUTSIDE] == 0.25


def test_distances_vanish_at_the_teacher_and_are_kl_or_squares():
    student, teacher = draws(6, 9), draws(6, 9, seed=1)
    q, p = F.softmax(student, -1), F.softmax(teacher, -1)
    squares = distance(student, teacher, ProkdNerParams(kd="mse"))
    torch.testing.assert_close(squares, ((q - p) ** 2).sum(-1).mean())
    kl = distance(student, teacher, ProkdNerParams(kd="kl"))
    torch.testing.assert_close(kl, (p * (p / q).log()).sum(-1).mean())
    for kind in ("kl", "mse"):
        assert distance(teacher, teacher, ProkdNerParams(kd=kind)) == pytest.approx(0, abs=1e-6)


def test_pseudo_labels_are_the_best_of_the_product_and_have_to_be_sure():
    features, teacher = draws(50, 8), 2 * draws(50, 9, seed=1)
    bank = Prototypes(9, 8)
    bank.follow(draws(90, 8, seed=2), torch.arange(90) % 9, 0.9)
    params = ProkdNerParams(threshold=0.5, tau=0.5)
    labels, sure = pseudo_labels(features, teacher, bank, params)
    w = F.softmax(-(torch.cdist(unit(features), unit(bank.table)) ** 2) / 0.5, -1)
    product = F.softmax(teacher, -1) * w
    product = product / product.sum(1, keepdim=True)
    assert torch.equal(labels, product.argmax(1))
    assert torch.equal(sure, product.max(1).values >= 0.5)
    hard, of_teacher = pseudo_labels(features, teacher, None, params)
    assert torch.equal(hard, teacher.argmax(1))
    assert torch.equal(of_teacher, F.softmax(teacher, -1).max(1).values >= 0.5)
    assert (hard != labels).any()
    fresh, _ = pseudo_labels(features, teacher, Prototypes(9, 8), params)
    assert torch.equal(fresh, hard)  # without prototypes the teacher alone decides


def test_plain_distillation_on_the_target_is_what_the_variant_without_both_stages_does(run, registry, tmp_path):
    from kdbench.losses.divergences import fkl
    from kdbench.tracks.llm.kinds.ner import unlabelled
    from kdbench.tracks.llm.task import LLMTask
    from kdbench.training.distill import train_with_divergence

    result = run("prokd_ner", "ner2", **PLAIN)
    assert "aux_steps" not in result.outcome.cost
    assert result.outcome.cost["teacher_queries"] == 32
    task = LLMTask(registry.task("llm/ner2", "smoke"), seed=0, method="llm/prokd_ner", folder=tmp_path)
    target = unlabelled(task.split("train").sequences).nonzero()[:, 0]
    student = train_with_divergence(task, fkl, loader=task.train_loader(rows=target))
    task.phase = "evaluate"
    assert task.score(student)["nll"] == pytest.approx(result.outcome.metrics["nll"], rel=1e-5)


def test_both_stages_run_are_charged_and_are_measured(run):
    result = run("prokd_ner", "ner2", threshold=0.1, warmup=0.5)
    cost, extra = result.outcome.cost, result.outcome.extra
    assert cost["steps"] == cost["aux_steps"] == 4
    assert cost["teacher_queries"] == 32  # target rows alone, through the tuned teacher
    assert set(result.curve[0]) >= {"teacher/ce", "teacher/align"}
    assert [("pseudo" in row) for row in result.curve if "kd" in row] == [False, False, True, True]
    assert extra["prototype_ratio_before"] != extra["prototype_ratio_after"]
    for name in ("pseudo_accuracy", "pseudo_f1", "pseudo_coverage", "teacher_pseudo_accuracy", "teacher_f1"):
        assert 0 <= extra[name] <= 1


def test_variants_leave_out_what_they_say(run):
    runs = {
        "full": run("prokd_ner", "ner2", threshold=0.1, warmup=0.0),
        "no self-training": run("prokd_ner", "ner2", self_training="none"),
        "mse": run("prokd_ner", "ner2", self_training="none", kd="mse"),
        "labels alone": run("prokd_ner", "ner2", teacher_steps=0.0, kd_weight=0.0, self_training="hard", threshold=0.0),
    }
    assert len({result.outcome.metrics["nll"] for result in runs.values()}) == len(runs)
    alone = runs["labels alone"]
    assert all("kd" not in row and "pseudo" in row for row in alone.curve)
    extra = alone.outcome.extra
    assert extra["prototype_ratio_before"] == extra["prototype_ratio_after"]
    assert extra["pseudo_f1"] == extra["teacher_pseudo_f1"]
    assert extra["pseudo_coverage"] == 1.0
    assert "pseudo_f1" not in runs["no self-training"].outcome.extra


def test_alignment_changes_the_teacher_and_not_what_was_before(run):
    longer = {"limits": {"steps": 24}}
    with_it, without = (
        run("prokd_ner", "ner2", overrides=longer, align=align, self_training="none", teacher_lr=5e-3).outcome.extra
        for align in (5.0, 0.0)
    )
    assert with_it["prototype_ratio_after"] != without["prototype_ratio_after"]
    assert with_it["prototype_ratio_before"] == without["prototype_ratio_before"]


def test_a_loss_without_terms_is_refused():
    with pytest.raises(UsageError, match="nothing to learn"):
        train(None, ProkdNerParams(kd_weight=0.0, self_training="none"))
