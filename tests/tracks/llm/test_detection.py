"""Text with a part out of the distribution: measures of detection, splits, stages and scores."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch

from kdbench.tracks.llm.blocks.detection import detection, machine_text
from kdbench.tracks.llm.data.cpython import Document
from kdbench.tracks.llm.data.specs import TextOodData
from kdbench.tracks.llm.kinds.ood import shuffled
from kdbench.tracks.llm.networks.taps import hidden_taps


def test_measures_of_detection():
    rng = np.random.default_rng(0)
    same = detection(rng.normal(size=4000), rng.normal(size=4000))
    assert same["auroc"] == pytest.approx(0.5, abs=0.03)
    assert same["far95"] == pytest.approx(0.95, abs=0.03)
    assert same["aupr_out"] == pytest.approx(0.5, abs=0.03)
    inside, outside = rng.normal(size=300), 1 + rng.normal(size=100)
    found = detection(inside, outside)
    pairs = (outside[:, None] > inside[None]).mean()
    assert found["auroc"] == pytest.approx(pairs)
    assert found["far95"] == pytest.approx((inside >= np.sort(outside)[5]).mean())
    turned = detection(-outside, -inside)
    assert turned["auroc"] == pytest.approx(found["auroc"])
    assert (turned["aupr_out"], turned["aupr_in"]) == pytest.approx((found["aupr_in"], found["aupr_out"]))
    assert detection(np.exp(inside), np.exp(outside)) == pytest.approx(found), "perplexity is as good as loss"
    assert detection(np.ones(3), np.ones(2))["auroc"] == 0.5
    with pytest.raises(ValueError, match="0 outside"):
        detection(inside, outside[:0])


def test_shuffled_documents_keep_words_and_blanks():
    text = "def f(x):\n    return  x + 1\n" * 5
    (found,) = shuffled([Document(text, "docs", {"name": "a"})], 0)
    assert found.text != text
    assert Counter(found.text.split()) == Counter(text.split())
    assert found.text.count("\n") == text.count("\n")
    assert found == shuffled([Document(text, "docs", {"name": "a"})], 0)[0]
    assert found.domain == "shuffled"


def test_domains_are_inside_or_outside():
    with pytest.raises(ValueError, match=r"both have: \['docs'\]"):
        TextOodData(outside=("docs", "code"))


def test_the_test_data_have_both_parts_and_training_one(make_task):
    task = make_task("text-ood")
    domains = {name: Counter(row.domain for row in task.split(name).rows) for name in ("train", "val")}
    assert set(domains["train"]) == set(domains["val"]) == {"facts"}
    task.phase = "evaluate"
    assert Counter(row.domain for row in task.split("test").rows) == {"facts": 8, "arith": 4, "shuffled": 4}
    names = {row.document for row in task.split("train").rows}
    assert not names & {row.document.removeprefix("shuffled/") for row in task.split("test").rows}
    pretraining, tuning = (task._data.stage_rows(objective) for objective in ("lm", "sft"))
    assert len(pretraining) > len(tuning) == len(task.split("train"))


def test_scores_are_those_of_the_parts(make_task):
    task = make_task("text-ood")
    student = task.student()
    task.phase = "evaluate"
    scores = task.scores(student)
    losses, domains = scores.examples["loss"], np.array([row.domain for row in task.split("test").rows])
    inside = losses[domains == "facts"]
    sequences = task.split("test").sequences
    tokens = (sequences.lengths - sequences.starts).numpy()[domains == "facts"]
    assert scores.metrics["loss"] == pytest.approx((inside * tokens).sum() / tokens.sum())
    for name in ("arith", "shuffled"):
        part = detection(inside, losses[domains == name])
        assert scores.metrics[f"auroc/{name}"] == pytest.approx(part["auroc"])
    assert scores.metrics["auroc"] == pytest.approx(detection(inside, losses[domains != "facts"])["auroc"])


def test_machine_text_is_found_by_a_model_that_wrote_it(make_task):
    task = make_task("text-ood")
    task.phase = "evaluate"
    teacher = task.teacher()
    found = machine_text(task, teacher, teacher)
    assert found == machine_text(task, teacher, teacher)
    with torch.no_grad():  # a writer that nobody confuses with people: one token again and again
        loud = task.teacher(trainable=True)
        loud.transformer.ln_f.bias.copy_(10 * loud.lm_head.weight[5] / loud.lm_head.weight[5].norm())
    assert machine_text(task, loud, loud)["auroc_machine"] > 0.9


@pytest.mark.parametrize("name", ["text-ood", "classify-reviews"])
def test_taps_are_the_layers_of_one_forward(make_task, name: str):
    task = make_task(name)
    model, batch = task.student(), next(iter(task.train_loader()))
    taps = hidden_taps(model, batch)
    assert len(taps.layers) == model.config.num_hidden_layers
    tokens = task.tokens(model, batch)
    assert torch.allclose(taps.logits, tokens.logits if tokens.logits is not None else tokens.student, atol=1e-5)
    assert all(layer.shape == (int(taps.scored.sum()), model.config.hidden_size) for layer in taps.at())
    if name == "text-ood":
        assert torch.allclose(model.lm_head(taps.at()[-1]), taps.logits, atol=1e-5)
    before = task.budget.spent.get("teacher_queries", 0)
    hidden_taps(task.teacher(), batch)
    assert task.budget.spent["teacher_queries"] == before + len(batch)
