"""Deco-G on a tiny task: what the hidden Markov model is fitted to, and what is measured."""

from __future__ import annotations

import json

import pytest
import torch

from kdbench.registry import discover
from kdbench.tracks.decoding.blocks.hmm import padded
from kdbench.tracks.decoding.data.formats import FORMATS
from kdbench.tracks.decoding.task import DecodingTask
from kdbench_methods.decoding import deco_g
from kdbench_methods.decoding.deco_g import DecoGParams

SMALL = {"states": 4, "responses": 12, "iterations": 2}


@pytest.fixture
def task(tmp_path):
    spec = discover().task("decoding/formats", "smoke")
    return DecodingTask(spec, seed=0, method="decoding/deco_g", folder=tmp_path)


def fitted_to(task, monkeypatch, **options):
    """The tokens that the model is fitted to, and the decoder."""
    seen = []
    monkeypatch.setattr(deco_g, "fit", lambda model, tokens, **rest: seen.append(tokens))
    decoder = deco_g.train(task, DecoGParams(**(SMALL | options)))
    return seen[0], decoder


def test_the_model_is_fitted_to_responses_without_their_prompts(task, monkeypatch):
    asked, plain = [], task.rollout
    monkeypatch.setattr(
        task, "rollout", lambda model, prompts, **rest: asked.append(prompts) or plain(model, prompts, **rest)
    )
    tokens, decoder = fitted_to(task, monkeypatch)
    problems = task.split("train").rows
    texts = task.tokenizer.batch_decode(asked[0].ids, skip_special_tokens=True)
    assert texts == [problems[row].task for row in asked[0].index.tolist()]
    assert tokens.shape == (12, task.spec.evaluation.max_new)
    assert not decoder.reads_prompt
    end = task.tokenizer.eos_token_id
    again = task.rollout(
        task.teacher(), asked[0], max_new=tokens.shape[1], generator=generator_after_choice(task, len(problems))
    )
    rows = [ids[kept].tolist() for ids, kept in zip(again.input_ids, again.labels != -100, strict=True)]
    assert torch.equal(tokens, padded(rows, tokens.shape[1], end))
    assert task.budget.spent["teacher_queries"] == 24  # twelve of them are the test's own


def generator_after_choice(task, rows):
    generator = task.generator("responses")
    torch.randperm(rows, generator=generator)
    return generator


def test_unconditional_text_begins_with_nothing_and_has_prompts_in_it(task, monkeypatch):
    asked, plain = [], task.rollout
    monkeypatch.setattr(
        task, "rollout", lambda model, prompts, **rest: asked.append((prompts, rest)) or plain(model, prompts, **rest)
    )
    tokens, decoder = fitted_to(task, monkeypatch, source="unconditional")
    [(prompts, options)] = asked
    assert prompts.ids == [[task.tokenizer.bos_token_id]] * 12
    assert options["max_new"] == task.spec.data.length > task.spec.evaluation.max_new
    assert decoder.reads_prompt
    assert len(tokens) == 12


def test_no_more_responses_than_there_are_tasks(task, monkeypatch):
    tokens, _ = fitted_to(task, monkeypatch, responses=5000)
    assert len(tokens) == len(task.split("train"))


def test_options_reach_model_and_decoder(task):
    decoder = deco_g.train(task, DecoGParams(**SMALL, eps=0.25, jump=False, pseudocount=0.5))
    assert (decoder.eps, decoder.jump, decoder.model.states) == (0.25, False, 4)
    assert decoder.model.vocabulary == len(task.tokenizer)
    assert float(decoder.model.emission.min()) > 0
    assert task.budget.spent["aux_steps"] == 2


def test_measures_of_a_job(run):
    made = run("decoding/deco_g", "formats", **SMALL)
    assert made.outcome.metrics["compliance"] == 1.0
    nats = made.column("hmm_nats")
    assert len(nats) == 2
    assert nats[1] < nats[0]
    extra = made.outcome.extra
    assert extra["target_entropy"] < extra["hmm_nats"]  # nobody is better at the target's text than the target
    assert 1 <= extra["kept_mean"] <= 4
    assert extra["forced_mean"] > 0
    for name in FORMATS:
        assert 0 <= extra[f"format_accuracy/{name}"] <= 1


def test_baselines_of_formats(run, tmp_path):
    mask = run("decoding/hard_mask", "formats").outcome
    reserved = run("decoding/hard_mask", "formats", reserve=True).outcome
    assert mask.metrics["compliance"] <= reserved.metrics["compliance"] == 1.0
    prompted = run("decoding/prompt_format", "formats").outcome
    assert prompted.metrics["block_efficiency"] == 1.0
    assert 0 <= prompted.extra["task_accuracy_alone"] <= 1
    program = run("decoding/reformat", "formats").outcome
    assert program.metrics["format_accuracy"] <= program.metrics["compliance"]
    found = json.loads((tmp_path / "job0" / "artifacts" / "formats.json").read_text())
    assert set(found["formats"]) == set(found["examples"]) == set(FORMATS)
