"""AdaSPEC: what is trained from where, on which tokens, and what is reported."""

from __future__ import annotations

import json

import pytest
import torch

from kdbench.tracks.decoding.task import DecodingTask
from kdbench_methods.decoding import adaspec

SMALL = {"evaluation": {"gammas": [3], "max_new": 8}}
"""Evaluation in a fraction of a second."""


def test_with_every_token_kept_it_is_forward_kl(run):
    whole = run("decoding/adaspec", "arith", overrides=SMALL, k=1.0)
    plain = run("decoding/kd_fkl", "arith", overrides=SMALL)
    official = set(plain.outcome.metrics) - {"speedup"}
    assert {name: whole.outcome.metrics[name] for name in official} == {
        name: plain.outcome.metrics[name] for name in official
    }
    for name in ("alpha_exact", "alpha_exact_greedy", "alpha_empirical"):
        assert whole.outcome.extra[name] == plain.outcome.extra[name]
    assert [row["loss"] for row in whole.curve if "loss" in row] == plain.column("loss")
    assert "alpha_dropped" not in whole.outcome.extra


def test_a_draft_is_trained_from_the_start_on_tokens_that_a_separate_reference_selects(run, monkeypatch, tmp_path):
    students, fits, selections = [], [], []
    build, fit, loss_of = DecodingTask.student, DecodingTask.fit, adaspec.selective_loss

    def student(task):
        made = build(task)
        students.append({name: tensor.clone() for name, tensor in made.state_dict().items()})
        return made

    def watched(task, model, loss, **how):
        fits.append((how.get("spend", "steps"), how["steps"], all(p.requires_grad for p in model.parameters())))
        return fit(task, model, loss, **how)

    def selected(values, kept, normalise):
        selections.append(kept)
        return loss_of(values, kept, normalise)

    monkeypatch.setattr(DecodingTask, "student", student)
    monkeypatch.setattr(DecodingTask, "fit", watched)
    monkeypatch.setattr(adaspec, "selective_loss", selected)
    result = run("decoding/adaspec", "arith", overrides=SMALL)
    # draft and reference begin alike, and each has the steps of the task
    assert all(torch.equal(students[1][name], tensor) for name, tensor in students[0].items())
    assert fits == [("aux_steps", 4, True), ("steps", 4, True)]
    assert result.outcome.cost["aux_steps"] == result.outcome.cost["steps"] == 4
    # a share of the response tokens of the whole batch
    assert len(selections) == 4
    for kept in selections:
        assert len(kept) > 50
        assert kept.sum().item() == pytest.approx(0.4 * len(kept), abs=1.5)

    extra = result.outcome.extra
    share = extra["kept_share"]
    assert share == pytest.approx(0.4, abs=0.05)
    mixed = share * extra["alpha_kept"] + (1 - share) * extra["alpha_dropped"]
    assert mixed == pytest.approx(extra["alpha_exact"], abs=1e-5)
    assert 0 < extra["reference_alpha_dropped"] < 1
    found = json.loads((tmp_path / "job0" / "artifacts" / "gap.json").read_text())
    assert sum(found["start"]["counts"]) == sum(found["end"]["counts"]) > 20
    again = json.loads((tmp_path / "job0" / "artifacts" / "selected_again.json").read_text())
    assert again["steps"] == [1, 2, 3, 4]
    assert result.column("selected_again") == pytest.approx(again["selected_again"])
    assert all(0 <= value <= 1 for value in again["selected_again"])
    assert extra["acceptance_deviation"] < 4


@pytest.mark.parametrize("selection", ["lowest", "random"])
def test_ablations_select_other_tokens_with_a_shorter_reference_where_asked(run, selection, monkeypatch):
    asked = []
    choose = adaspec.learnable

    def watched(gap, share, which="top", generator=None):
        asked.append((which, share))
        return choose(gap, share, which, generator)

    monkeypatch.setattr(adaspec, "learnable", watched)
    options = {"selection": selection, "normalise": "all", "stretch": True, "k": 0.5}
    result = run("decoding/adaspec", "arith", overrides=SMALL, **options)
    assert asked.count((selection, 0.5)) == 4 + 1 + 4  # steps and looks
    assert asked.count(("top", 0.5)) == 1  # what is called the kept kind in evaluation
    assert (result.outcome.cost["aux_steps"], result.outcome.cost["steps"]) == (2, 4)
