"""AdaSPEC: what is trained from where, on which tokens, and what is reported."""

from __future__ import annotations

import json

import pytest
import torch

from kdbench_methods.decoding import adaspec


def test_with_every_token_kept_it_is_forward_kl(run):
    whole = run("decoding/adaspec", "arith", k=1.0)
    plain = run("decoding/kd_fkl", "arith")
    official = set(plain.outcome.metrics) - {"speedup"}
    assert {name: whole.outcome.metrics[name] for name in official} == {
        name: plain.outcome.metrics[name] for name in official
    }
    for name in ("alpha_exact", "alpha_exact_greedy", "alpha_empirical"):
        assert whole.outcome.extra[name] == plain.outcome.extra[name]
    assert [row["loss"] for row in whole.curve if "loss" in row] == [row["loss"] for row in plain.curve]
    assert "alpha_dropped" not in whole.outcome.extra


def test_the_reference_is_trained_apart_and_the_draft_starts_again(run, monkeypatch):
    students, fits = [], []
    from kdbench.tracks.decoding.task import DecodingTask

    build, fit = DecodingTask.student, DecodingTask.fit

    def student(task):
        made = build(task)
        students.append({name: tensor.clone() for name, tensor in made.state_dict().items()})
        return made

    def watched(task, model, loss, **how):
        fits.append((how.get("spend", "steps"), how["steps"], [p.requires_grad for p in model.parameters()]))
        return fit(task, model, loss, **how)

    monkeypatch.setattr(DecodingTask, "student", student)
    monkeypatch.setattr(DecodingTask, "fit", watched)
    result = run("decoding/adaspec", "arith")
    assert all(torch.equal(students[1][name], tensor) for name, tensor in students[0].items())
    assert [(unit, steps) for unit, steps, _ in fits] == [("aux_steps", 4), ("steps", 4)]
    assert all(all(trainable) for *_, trainable in fits)
    assert result.outcome.cost["aux_steps"] == result.outcome.cost["steps"] == 4


def test_stretching_gives_the_draft_more_steps_than_the_reference(run):
    cost = run("decoding/adaspec", "arith", stretch=True, k=0.5).outcome.cost
    assert (cost["aux_steps"], cost["steps"]) == (2, 4)


def test_selection_is_over_the_response_tokens_of_the_whole_batch(run, monkeypatch):
    seen = []

    def watched(gap, share, which="top", generator=None):
        seen.append(len(gap))
        return learnable(gap, share, which, generator)

    learnable = adaspec.learnable
    monkeypatch.setattr(adaspec, "learnable", watched)
    batches = []
    loss = adaspec.selective_loss
    monkeypatch.setattr(
        adaspec,
        "selective_loss",
        lambda values, kept, how: batches.append((len(values), kept)) or loss(values, kept, how),
    )
    run("decoding/adaspec", "arith")
    assert len(batches) == 4
    assert {count for count, _ in batches} <= set(seen)
    for count, kept in batches:
        assert kept.sum().item() == pytest.approx(0.4 * count, abs=1.5)


@pytest.mark.parametrize("options", [{"selection": "lowest"}, {"selection": "random"}, {"normalise": "all"}])
def test_ablations_train_another_draft(run, options):
    base, other = run("decoding/adaspec", "arith"), run("decoding/adaspec", "arith", **options)
    assert base.column("loss")[-1] != other.column("loss")[-1]
    assert base.outcome.metrics["agreement"] == other.outcome.metrics["agreement"] == 1.0


def test_what_is_reported(run, tmp_path):
    result = run("decoding/adaspec", "docs")
    extra = result.outcome.extra
    assert extra["kept_share"] == pytest.approx(0.4, abs=0.02)
    for role in ("", "reference_"):
        mixed = (
            extra["kept_share"] * extra[f"{role}alpha_kept"] + (1 - extra["kept_share"]) * extra[f"{role}alpha_dropped"]
        )
        assert 0 < mixed < 1
        if not role:
            assert mixed == pytest.approx(extra["alpha_exact"], abs=1e-5)
    found = json.loads((tmp_path / "job0" / "artifacts" / "gap.json").read_text())
    assert sum(found["start"]["counts"]) == sum(found["end"]["counts"]) > 50
    again = json.loads((tmp_path / "job0" / "artifacts" / "selected_again.json").read_text())
    assert again["steps"] == [1, 2, 3, 4]
    assert all(0 <= share <= 1 for share in again["selected_again"])
    assert result.column("selected_again") == again["selected_again"]
    assert extra["acceptance_deviation"] < 4


def test_an_interrupted_job_goes_on(interrupted):
    interrupted("decoding/adaspec", "arith", 3)
