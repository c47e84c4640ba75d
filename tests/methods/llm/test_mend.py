"""MEND: both stages, what each of them minimises, the variants, and what is said about unseen tasks."""

from __future__ import annotations

import json

import pytest
import torch

from kdbench.errors import JobError, UsageError
from kdbench.losses.divergences import fkl
from kdbench.tracks.llm.networks.models import targets_of
from kdbench.tracks.llm.networks.soft_prefix import cut_rows
from kdbench.tracks.llm.task import LLMTask
from kdbench_methods.llm.mend import MendParams, build, distance, text_cuts, train


@pytest.fixture
def task(registry, tmp_path):
    return LLMTask(registry.task("llm/icl", "smoke"), seed=0, method="llm/mend", folder=tmp_path)


# --- losses -----------------------------------------------------------------------------------------------------------


def test_a_text_is_cut_after_its_share(task):
    batch = task.kind.plain_text().batch(torch.arange(3))
    lengths = batch.attention_mask.sum(dim=1)
    assert torch.equal(text_cuts(batch, 0.8), 1 + ((lengths - 1) * 0.8).long())
    for share in (0.001, 0.999):
        cut = cut_rows(batch, text_cuts(batch, share))
        assert cut.context_mask.sum(dim=1).min() >= 1
        assert cut.rest_mask.sum(dim=1).min() >= 1
    cut = cut_rows(batch, text_cuts(batch, 0.8))
    assert torch.equal(cut.context_mask.sum(dim=1) + cut.rest_mask.sum(dim=1) + 1, lengths)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_the_divergence_is_at_the_tokens_of_the_query_alone(task, temperature):
    params = MendParams(temperature=temperature)
    model = build(task, params, "mend").eval()
    batch = task.split("train").sequences.batch(torch.arange(3))
    cuts = model.cuts(batch)
    value, _, labels = distance(task, params, model, batch, cuts)
    assert torch.equal(labels, targets_of(batch))
    teacher = task.teacher()(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits
    parts = []
    with torch.no_grad():
        for i, cut in enumerate(cuts.tolist()):
            length = int(batch.attention_mask[i].sum())
            context, rest = batch.input_ids[i : i + 1, 1:cut], batch.input_ids[i : i + 1, cut:length]
            embed = model.reader.get_input_embeddings()
            vectors = model.distill(context, torch.ones_like(context))
            row = torch.cat([embed(batch.input_ids[:1, :1]), vectors, embed(rest)], dim=1)
            own = model.reader(inputs_embeds=row).logits[0, 1 + vectors.shape[1] :]
            parts.append(fkl(own, teacher[i, cut:length], temperature=temperature))
    assert value.item() == pytest.approx(torch.cat(parts).mean().item(), abs=1e-5)
    assert task.budget.spent["teacher_queries"] >= 3


def test_nothing_is_left_to_learn_where_vectors_say_as_much_as_the_context(task, monkeypatch):
    for match in ("kl", "hidden"):
        params = MendParams(match=match)
        model = build(task, params, "mend").eval()
        batch = task.split("train").sequences.batch(torch.tensor([0]))
        monkeypatch.setattr(model, "vectors", lambda ids, mask, model=model: model.reader.get_input_embeddings()(ids))
        assert distance(task, params, model, batch, model.cuts(batch))[0].item() == pytest.approx(0, abs=1e-6)


# --- jobs -------------------------------------------------------------------------------------------------------------


def test_both_stages_share_the_steps(run):
    both = run("mend", "icl")
    assert both.outcome.cost["steps"] == 4
    assert len(both.column("pretrain/kl")) == len(both.column("finetune/ce")) == len(both.column("finetune/kl"))
    assert both.column("pretrain/ce") == []
    second = run("mend", "icl", pretrain=0.0, match="hidden")
    assert second.outcome.cost["steps"] == 2
    assert min(second.column("hidden")) > 0
    first = run("mend", "icl", finetune=0.0)
    assert first.column("ce") == []
    assert run("mend", "icl", pretrain=0.0, finetune=1.0, weight=0.0).column("kl") == []


def test_what_is_said_about_unseen_tasks(run, tmp_path):
    outcome = run("mend", "icl").outcome
    teacher, zero = run("teacher", "icl").outcome, run("mend", "icl", variant="zero_shot").outcome
    extra = outcome.extra
    assert extra["icl_accuracy"] == teacher.metrics["accuracy"]
    assert extra["zero_shot_accuracy"] == zero.metrics["accuracy"]
    gap = extra["icl_accuracy"] - extra["zero_shot_accuracy"]
    assert ("gap_recovered" in extra) == (gap > 0)
    if gap > 0:
        assert extra["gap_recovered"] * gap == pytest.approx(outcome.metrics["accuracy"] - extra["zero_shot_accuracy"])
    assert zero.extra["context_tokens"] + 8 == extra["context_tokens"] < extra["icl_context_tokens"]
    assert extra["query_mflops_cached"] < extra["query_mflops"]
    assert extra["flops_ratio"] == pytest.approx(extra["query_mflops"] / extra["icl_query_mflops"])
    assert zero.extra["agreement_permuted"] == 1
    table = json.loads((tmp_path / "job0/artifacts/tasks.json").read_text())
    assert len(table) == 4
    assert sum(row["accuracy"] for row in table) / 4 == pytest.approx(outcome.metrics["accuracy"])


def test_vectors_that_are_fitted_to_each_task_train_nothing_before(run):
    outcome = run("mend", "icl", variant="prompt_tuning", tuning_steps=2).outcome
    assert outcome.cost.get("steps", 0) == 0
    assert outcome.extra["query_mflops"] > outcome.extra["query_mflops_cached"]


def test_ordinary_methods_run_on_few_shot_tasks(run):
    for slug in ("sft", "kd_fkl", "student_init"):
        assert 0 <= run(slug, "icl").outcome.metrics["accuracy"] <= 1


def test_what_was_interrupted_ends_as_if_it_had_not_been(interrupted):
    interrupted("mend", "icl", 6, {"limits": {"steps": 8}})


def test_what_cannot_be_is_refused(registry, task, tmp_path):
    with pytest.raises(UsageError, match="more than all"):
        train(task, MendParams(pretrain=0.8, finetune=0.4))
    other = LLMTask(registry.task("llm/text", "smoke"), seed=0, method="llm/mend", folder=tmp_path)
    with pytest.raises(JobError, match="demonstrations"):
        train(other, MendParams())
