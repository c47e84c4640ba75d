"""Return of the Encoder: the slices of teacher and student, its shapes, its two terms, and what writing costs."""

from __future__ import annotations

import json

import pytest
import torch
from torch.nn import functional as F

from kdbench.errors import UsageError
from kdbench.losses.divergences import fkl
from kdbench.losses.tokens import IGNORE
from kdbench.task import count_parameters
from kdbench.tracks.llm.data.encoding import TextBatch
from kdbench.tracks.llm.networks.models import scored_logits, targets_of
from kdbench.training.rollouts import Answered
from kdbench_methods.llm.return_of_the_encoder import (
    ReturnOfTheEncoderParams,
    lengths_up_to,
    make_loss,
    make_student,
    shape_of,
    teacher_on,
)

TASK = "instruct-passages"
QUICK = {"longest_input": 32, "written": 3, "repeats": 1}


@pytest.fixture
def task(registry, tmp_path):
    from kdbench.tracks.llm.task import LLMTask

    def make(name: str = TASK, **overrides):
        spec = registry.task(f"llm/{name}", "smoke", overrides or None)
        return LLMTask(spec, seed=0, method="llm/return_of_the_encoder", folder=tmp_path)

    return make


def test_the_slice_behind_the_padded_source_is_the_teacher_on_the_same_tokens(task):
    """Rows of other lengths are padded on other sides; the tokens are the same, and so are the logits."""
    made = task()
    batch = next(iter(made.train_loader()))
    assert batch.attention_mask.sum(1).unique().numel() > 1
    logits = teacher_on(made, batch)
    assert logits.shape == (int(batch.scored.sum()), made.teacher_vocabulary)
    torch.testing.assert_close(logits, made.scored_teacher(batch), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("share", [1 / 3, 1 / 2, 2 / 3])
def test_every_split_has_the_parameters_of_the_student(task, share):
    made = task(student={"layers": 6, "stages": []})
    student = made.student()
    model = make_student(made, ReturnOfTheEncoderParams(encoder_share=share))
    assert count_parameters(model) == pytest.approx(count_parameters(student), rel=0.02)
    assert len(model.encoder_layers) == round(6 * share)
    assert len(model.encoder_layers) + len(model.layers) == 6


def test_the_parameter_matched_student_is_the_one_of_the_task(task):
    made = task()
    model = make_student(made, ReturnOfTheEncoderParams(architecture="decoder_only"))
    for mine, theirs in zip(model.parameters(), made.student().parameters(), strict=True):
        assert torch.equal(mine, theirs)


def test_both_architectures_begin_with_first_weights_of_the_same_sizes(task):
    made = task(student={"layers": 6, "width": 64, "stages": []})
    student, model = made.student(), make_student(made, ReturnOfTheEncoderParams())
    for network in (student, model):
        assert network.get_input_embeddings().weight.std().item() == pytest.approx(0.2, rel=0.05)
        assert network.get_output_embeddings().weight is network.get_input_embeddings().weight
    assert model.layers[0].mlp.up_proj.weight.std().item() == pytest.approx(0.08, rel=0.05)


def test_shapes_that_cannot_be_are_refused(task):
    made = task()
    with pytest.raises(UsageError, match="fewer layers"):
        shape_of(made, ReturnOfTheEncoderParams(layers=40))
    with pytest.raises(UsageError, match="divisor"):
        shape_of(made, ReturnOfTheEncoderParams(heads=3))


def test_the_initial_network_is_the_same_for_all_seeds_and_trained(task):
    made = task()
    params = ReturnOfTheEncoderParams()
    first, second = make_student(made, params), make_student(made, params)
    untrained = make_student(task(student={"stages": []}), params)
    assert torch.equal(first.lm_head.weight, second.lm_head.weight)
    assert not torch.equal(first.lm_head.weight, untrained.lm_head.weight)


def test_the_loss_is_the_mean_over_the_tokens_of_each_target(task):
    """Padding behind the targets adds nothing: the same rows with more padding give the same loss."""
    made = task()
    params = ReturnOfTheEncoderParams(alpha=0.25)
    student = make_student(made, params).eval()
    rows = iter(made.train_loader())
    data, own = next(rows), next(rows)
    parts = make_loss(made, params)(student, Answered(data, own))
    expected = fkl(scored_logits(student, own), made.scored_teacher(own))
    torch.testing.assert_close(parts["kd"], 0.25 * expected.mean(), atol=1e-5, rtol=1e-4)
    nll = F.cross_entropy(scored_logits(student, data), targets_of(data))
    torch.testing.assert_close(parts["ce"], 0.75 * nll, atol=1e-5, rtol=1e-4)
    wide = TextBatch(
        F.pad(own.input_ids, (0, 7)),
        F.pad(own.attention_mask, (0, 7)),
        F.pad(own.labels, (0, 7), value=IGNORE),
        own.index,
    )
    again = make_loss(made, params)(student, Answered(data, wide))
    torch.testing.assert_close(again["kd"], parts["kd"], atol=1e-5, rtol=1e-4)


def test_a_term_without_weight_costs_nothing(run):
    plain = run("return_of_the_encoder", TASK, alpha=0.0, **QUICK)
    assert "teacher_queries" not in plain.outcome.cost
    assert "generated_tokens" not in plain.outcome.cost
    assert "kd" not in plain.curve[0]
    data = run("return_of_the_encoder", TASK, alpha=1.0, targets="data", **QUICK)
    assert "generated_tokens" not in data.outcome.cost
    assert data.outcome.cost["teacher_queries"] == 4 * data.outcome.cost["steps"]
    assert "ce" not in data.curve[0]


def test_targets_are_written_anew_in_every_step(run):
    cost = run("return_of_the_encoder", TASK, steps_fraction=1.0, **QUICK).outcome.cost
    assert cost["steps"] == 4
    assert cost["generated_tokens"] >= 4 * 4  # a token for each row of each step at least
    assert cost["teacher_queries"] == 4 * 4


def test_writing_costs_are_reported_for_both_architectures(run, tmp_path):
    found = {
        name: run("return_of_the_encoder", TASK, architecture=name, longest_input=64, written=3, repeats=1).outcome
        for name in ("encoder_decoder", "decoder_only")
    }
    ours, theirs = found["encoder_decoder"], found["decoder_only"]
    for name in ("token_flops", "cache_bytes"):
        assert 0 < ours.extra[name] < theirs.extra[name]
    for name in ("first_token_seconds", "token_seconds", "generation_peak_bytes"):
        assert ours.cost[name] > 0
    assert ours.extra["parameter_ratio"] == pytest.approx(1, abs=0.05)
    assert 0 <= ours.extra["answer_rouge_l"] <= 1
    table = json.loads((tmp_path / "job0" / "artifacts" / "writing_cost.json").read_text())
    assert table["model"] == "encoder_decoder"
    for name in found:
        assert [row["input_tokens"] for row in table[name]["costs"]] == [32, 64]


def test_lengths_end_at_the_longest():
    assert lengths_up_to(32) == [32]
    assert lengths_up_to(1000) == [32, 128, 512, 1000]
