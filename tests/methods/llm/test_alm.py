"""ALM: whole jobs, their comparisons and options; the blocks have tests of their own."""

from __future__ import annotations

import pytest

BYTES = {"tokenizer": "bytes", "merge": 0.0}


@pytest.mark.parametrize("task", ["instruct", "text"])
def test_a_student_is_given_bytes(run, task):
    result = run("alm", task, **BYTES)
    extra = result.outcome.extra
    assert len(result.column("alm")) == 4
    assert extra["chunk_tokens_student"] == pytest.approx(extra["chunk_bytes"])  # one token a byte
    assert extra["chunk_tokens_teacher"] == 1.0  # every token of the teacher is a chunk
    assert extra["chunk_bytes_after_merging"] == extra["chunk_bytes"]
    assert result.outcome.cost["teacher_queries"] == 16
    assert ("response_bits_per_byte" in extra) == (task == "instruct")


@pytest.mark.parametrize("objective", ["sft", "uld", "mined"])
def test_comparisons_start_from_the_same_student(run, objective):
    other = run("alm", "text", objective=objective)
    assert other.outcome.cost["steps"] == 4
    assert other.outcome.cost.get("teacher_queries", 0) == (0 if objective == "sft" else 16)


def test_hidden_states_and_the_next_token_are_terms_of_the_loss(run):
    result = run("alm", "instruct", hidden=1.0, sft=1.0, merge=0.9, divergence="temperature_limit")
    assert {"alm", "hidden", "ce"} <= set(result.curve[-1])
    assert result.outcome.extra["chunk_bytes_after_merging"] > result.outcome.extra["chunk_bytes"]


def test_two_models_with_one_tokenizer_are_an_ensemble(run):
    extra = run("alm", "text", tokenizer="bytes", partner="body").outcome
    assert extra.cost["aux_steps"] == 4
    single = extra.metrics["bits_per_byte"], extra.extra["partner_bits_per_byte"]
    # the mean of two probabilities is never less likely than their geometric mean
    assert extra.extra["ensemble_bits_per_byte"] <= sum(single) / 2 + 1e-4


def test_the_body_of_the_teacher_keeps_the_task_tokenizer_where_it_is_told_to(run):
    extra = run("alm", "text", student="body", tokenizer="task", merge=0.0).outcome.extra
    assert extra["chunk_tokens_student"] == extra["chunk_tokens_teacher"] == 1.0
