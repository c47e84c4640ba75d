"""DistillSpec: where the text comes from, which way the divergences go, how options are chosen, and lossy decoding."""

from __future__ import annotations

import json

import pytest
import torch

from kdbench.losses.divergences import divergence
from kdbench.tracks.decoding.blocks.drafts import acceptance, draft_loss, lossy_curve
from kdbench.tracks.decoding.blocks.sources import DATA, Sources, sequences_of
from kdbench.tracks.decoding.decoders.companions import OwnTarget, WithReference
from kdbench.tracks.decoding.decoders.speculative import Speculative
from kdbench.tracks.decoding.task import DecodingTask
from kdbench.tracks.llm.networks.models import scored_logits
from kdbench.training.loaders import cycle

SMALL = {"evaluation": {"gammas": [3, 5], "max_new": 8}}
"""Evaluation in a fraction of a second."""


@pytest.fixture
def task(registry, tmp_path):
    spec = registry.task("decoding/arith", "smoke")
    return DecodingTask(spec, seed=0, method="decoding/distillspec", folder=tmp_path)


def sources(task, **options):
    plain = {"responses": 6, "pool": 8, "refresh": 2, "fraction": 0.5, "offline": "gt", "temperature": 1.0}
    return Sources(task, task.teacher(), **(plain | options))


def texts(batch):
    return {tuple(ids[mask.bool()].tolist()) for ids, mask in zip(batch.input_ids, batch.attention_mask, strict=True)}


# --- data -------------------------------------------------------------------------------------------------------------


def take(loader, count):
    batches = cycle(loader)
    return [next(batches) for _ in range(count)]


def test_the_targets_responses_are_sampled_once_and_only_they_are_scored(task):
    made = sources(task)
    rows = made.written()
    assert len(rows) == 6
    assert made.written() is rows
    assert task.budget.spent["teacher_queries"] == 6
    loader, state = made.batches(task.student(), "teacher")
    assert state == []
    found = set().union(*(texts(batch) for batch in take(loader, 4)))
    assert found <= {tuple(row[:n].tolist()) for row, n in zip(rows.ids, rows.lengths, strict=True)}
    prompts = {tuple(prompt) for prompt in task.prompts_of("train", torch.arange(len(task.split("train")))).ids}
    for row, start in zip(rows.ids.tolist(), rows.starts.tolist(), strict=True):
        assert tuple(row[:start]) in prompts


def test_samples_are_those_of_the_draft_as_it_is(task, monkeypatch):
    asked, rollout = [], DecodingTask.rollout

    def watched(self, model, prompts, **how):
        asked.append((model, len(prompts), model.lm_head.weight.sum().item()))
        return rollout(self, model, prompts, **how)

    monkeypatch.setattr(DecodingTask, "rollout", watched)
    draft = task.student()
    loader, (pool,) = sources(task).batches(draft, "student")
    iterator = iter(loader)
    next(iterator), next(iterator)
    with torch.no_grad():
        draft.lm_head.weight.add_(1.0)
    batch = next(iterator)
    assert [(model is draft, count) for model, count, _ in asked] == [(True, 8), (True, 8)]
    assert asked[0][2] != asked[1][2]
    assert texts(batch) <= {tuple(row.input_ids.tolist()) for row in pool.buffer._rows}
    assert not batch.labels.requires_grad
    assert task.budget.spent["generated_tokens"] > 0


@pytest.mark.parametrize("offline", ["gt", "teacher"])
def test_mixed_batches_have_both(task, offline):
    made = sources(task, offline=offline, pool=4, refresh=1)
    loader, (pool,) = made.batches(task.student(), "mixed")
    batches = take(loader, 24)
    others = [batch for batch in batches if (batch.index >= 0).all()]
    assert pool.served == 24 - len(others)
    assert 4 < len(others) < 20


def test_sequences_of_generated_batches_keep_prompt_and_response(task):
    prompts = task.prompts("train", 5, torch.Generator().manual_seed(0))
    batch = task.rollout(task.teacher(), prompts, max_new=6, generator=torch.Generator().manual_seed(1))
    rows = sequences_of([batch, batch.rows(torch.tensor([0]))], pad=0)
    assert len(rows) == 6
    again = rows.batch(torch.arange(5))
    assert torch.equal(again.labels, batch.labels[:, : again.labels.shape[1]])


# --- the loss ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["fkl", "rkl", "jsd", "tvd"])
def test_the_loss_is_the_mean_over_sequences_of_the_right_divergence(task, name):
    draft, batch = task.student(), next(iter(task.train_loader()))
    value = draft_loss(task, task.teacher(), divergence(name))(draft, batch)
    p, q = (scored_logits(model, batch).double().softmax(-1) for model in (task.teacher(), draft))
    m = (p + q) / 2
    each = {
        "fkl": (p * (p / q).log()).sum(-1),
        "rkl": (q * (q / p).log()).sum(-1),
        "jsd": 0.5 * ((p * (p / m).log()).sum(-1) + (q * (q / m).log()).sum(-1)),
        "tvd": (p - q).abs().sum(-1) / 2,
    }[name]
    rows = batch.scored.nonzero()[:, 0]
    means = [each[rows == row].mean() for row in rows.unique()]
    assert value.item() == pytest.approx(torch.stack(means).mean().item(), rel=1e-4)
    value.backward()
    assert all(parameter.grad is None for parameter in task.teacher().parameters())


# --- choice -----------------------------------------------------------------------------------------------------------


def artifact(tmp_path, name):
    return json.loads((tmp_path / "job0" / "artifacts" / name).read_text())


def test_the_divergence_is_chosen_by_acceptance_on_validation_data_and_all_is_reported(run, tmp_path):
    result = run("decoding/distillspec", "arith", overrides=SMALL)
    found, extra = artifact(tmp_path, "choice.json"), result.outcome.extra
    trials = found["trials"]
    assert [trial["divergence"] for trial in trials[:4]] == ["fkl", "rkl", "jsd", "tvd"]
    assert {trial["divergence"] for trial in trials[4:]} == {
        trial["divergence"] for trial in sorted(trials[:4], key=lambda t: -t["alpha"])[:2]
    }
    best = max(trials[4:], key=lambda trial: trial["alpha"])
    assert found["chosen"] == ["student", best["divergence"]]
    assert result.outcome.cost["steps"] == 4
    assert result.outcome.cost["aux_steps"] == sum(trial["steps"] for trial in trials)

    points = artifact(tmp_path, "lossy.json")
    assert [point["function"] for point in points] == ["lossless"] + ["lin"] * 2 + ["sq"] * 2 + ["exp"] * 2
    assert extra["lossy_tau_gain"] == max(point["tau"] for point in points) / points[0]["tau"] > 1
    assert all({"tau", "forwards", "target_nll", "exact_match"} <= set(point) for point in points)
    clocks = artifact(tmp_path, "speedup.json")
    tau = sum(clocks["alpha_greedy"] ** i for i in range(6))
    assert clocks["predicted"] == pytest.approx(tau / (1 + 5 * clocks["cost"]))
    assert clocks["cost"] == pytest.approx(clocks["draft_seconds"] / clocks["target_seconds"])
    assert extra["acceptance_deviation"] < 4
    assert {"tau/gamma3", "tau/gamma5", "tau_t1/gamma3", "tau_expected/gamma5"} <= set(extra)


def test_data_can_be_chosen_too(run, tmp_path):
    options = {"divergence": "tvd", "responses": 4, "pool": 4, "lossy_prompts": 1, "choose_for": "sampling"}
    run("decoding/distillspec", "arith", overrides=SMALL, data="auto", rungs=1, **options)
    trials = artifact(tmp_path, "choice.json")["trials"]
    assert {(trial["data"], trial["divergence"]) for trial in trials} == {(data, "tvd") for data in DATA}


def test_acceptance_is_measured_on_text_that_the_target_has_written(task):
    draft, target = task.student(), task.teacher()
    assert acceptance(task, draft, target, "val") == task.acceptance(draft, "val")
    assert acceptance(task, target, target, "val", 0.0) == 1.0
    other = task.student()  # as a target of its own
    assert acceptance(task, other, other, "val") == pytest.approx(1.0, abs=1e-5)
    assert acceptance(task, draft, other, "val", 0.0) == 1.0


# --- evaluation -------------------------------------------------------------------------------------------------------


def test_two_stages_give_a_smaller_target_that_writes_for_itself(run):
    options = {"middle_width": 16, "middle_head": 8, "middle_layers": 1}
    result = run("decoding/distillspec", "arith", overrides=SMALL, two_stage=True, divergence="fkl", **options)
    extra = result.outcome.extra
    assert extra["own_lossless"] == 1.0
    assert extra["flops_ratio"] > 0
    assert result.outcome.cost["aux_steps"] == 8  # of the smaller target: a fixed option has no trials
    assert {"target_nll", "alone/target_nll", "alone/exact_match"} <= set(extra)


def test_widths_without_whole_heads_are_refused(run):
    with pytest.raises(AssertionError, match="multiple of middle_head"):
        run("decoding/distillspec", "arith", two_stage=True, middle_width=20)


@pytest.mark.parametrize("kind", [OwnTarget, WithReference])
def test_decoders_with_a_second_network_are_saved_with_it(task, tmp_path, kind):
    decoder = kind(task.student(), task.student(), task.spec.evaluation.gamma)
    task.save(decoder, tmp_path / "saved")
    again = task.load(tmp_path / "saved")
    assert type(again) is kind
    prompts = task.prompts_of("val", torch.arange(2)).ids
    assert task.decode(again, prompts).tokens == task.decode(decoder, prompts).tokens
    assert (task.decode(again, prompts).tokens == task.decode(Speculative(again.draft, 5), prompts).tokens) == (
        kind is WithReference
    )
    assert type(again.at(3)) is kind


def test_the_curve_begins_lossless(task):
    task.prepare()
    task.phase = "evaluate"
    decoder = Speculative(task.student(), 3)
    points = lossy_curve(task, decoder, ["lin"], [1.0, 0.01], 3)
    assert [(point["function"], point["level"]) for point in points] == [("lossless", 1.0), ("lin", 0.01)]
    assert points[1]["tau"] > points[0]["tau"]
