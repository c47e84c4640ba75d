"""What a task of the track gives to methods, measures and refuses."""

from __future__ import annotations

import json
from functools import lru_cache

import pytest
import torch

from kdbench.errors import ArtifactError, TestDataError
from kdbench.registry import Registry, discover
from kdbench.tracks.decoding.decoders.autoregressive import Autoregressive
from kdbench.tracks.decoding.decoders.base import Decoder
from kdbench.tracks.decoding.decoders.speculative import Speculative
from kdbench.tracks.decoding.spec import DecodingGate
from kdbench.tracks.decoding.task import DecodingTask
from kdbench.tracks.llm.generation import generate


@lru_cache(maxsize=1)
def registry() -> Registry:
    return discover()


@pytest.fixture
def make(tmp_path):
    def task(name="arith", seed=0, **overrides):
        spec = registry().task(f"decoding/{name}", "smoke", overrides or None)
        return DecodingTask(spec, seed=seed, method="decoding/probe", folder=tmp_path)

    return task


@pytest.fixture
def evaluating(make):
    task = make()
    task.phase = "evaluate"
    return task


@pytest.mark.parametrize("name", ["arith", "listops", "docs"])
def test_every_task_gives_its_metrics_to_every_decoder(make, name):
    task = make(name)
    task.prepare()
    task.phase = "evaluate"
    for decoder in (Autoregressive(), Speculative(task.student(), task.spec.evaluation.gamma)):
        scores = task.scores(decoder)
        assert set(scores.metrics) == {metric.name for metric in task.spec.all_metrics()}
        assert scores.metrics["lossless"] == scores.metrics["agreement"] == 1.0
        assert len(scores.examples["block_efficiency"]) == len(task.test_prompts())
    alone = task.score(Autoregressive())
    assert alone["block_efficiency"] == alone["block_efficiency_t1"] == 1.0
    assert alone["draft_parameters"] == 0


def test_the_target_as_its_own_draft_gets_all_its_proposals(evaluating):
    task = evaluating
    decoder = Speculative(task.teacher(), 5)
    written = task.decode(decoder, task.test_prompts())
    assert written.extra["accepted"] == written.extra["proposed"]
    assert task.acceptance(task.teacher()) == pytest.approx(1.0, abs=1e-6)


def test_responses_of_the_target_are_made_once(evaluating, monkeypatch):
    task = evaluating
    written = task.responses("test", 0.0)
    prompts, tokenizer = task.test_prompts(), task.tokenizer
    options = {"eos": tokenizer.eos_token_id, "pad": tokenizer.pad_token_id, "max_new": task.spec.evaluation.max_new}
    assert written == generate(task.teacher(), prompts, **options).tokens
    monkeypatch.setattr(task, "decode", lambda *_, **__: pytest.fail("asked again"))
    assert task.responses("test", 0.0) == written


def test_text_of_the_target_scores_exactly_its_responses(evaluating):
    task = evaluating
    batch, written = task.target_text("val"), task.responses("val", 1.0)
    for labels, response in zip(batch.labels, written, strict=True):
        assert labels[labels != -100].tolist() == response


def test_test_prompts_are_out_of_reach_in_training(make):
    task = make()
    with pytest.raises(TestDataError):
        task.test_prompts()
    with pytest.raises(TestDataError):
        task.responses("test", 0.0)
    task.prepare()
    assert task.phase == "train"


def test_a_pair_that_does_not_suit_says_why(make):
    task = make()
    task.phase = "evaluate"
    assert task.board_problems() == []
    values = task.gap()
    assert set(values) >= {"alpha", "target_exact_match", "draft_exact_match", "target_loss"}
    gate = DecodingGate(target_exact_match=1.0, draft_exact_match=0.0, alpha=(0.0, 1e-6))
    task.spec = task.spec.model_copy(update={"gate": gate})
    reasons = task.board_problems()
    assert any("the target's exact match" in reason for reason in reasons) == (values["target_exact_match"] < 1)
    assert f"a plain draft's acceptance is {values['alpha']:.3f}, not between 0 and 1e-06" in reasons
    open_gate = DecodingGate(target_exact_match=0.0, draft_exact_match=1.0, alpha=(0.0, 1.0))
    task.spec = task.spec.model_copy(update={"gate": open_gate})
    assert task.board_problems() == []


@pytest.mark.parametrize("kind", ["autoregressive", "speculative"])
def test_what_is_saved_decodes_the_same(evaluating, tmp_path, kind):
    task = evaluating
    decoder: Decoder = Autoregressive() if kind == "autoregressive" else Speculative(task.student(), 5)
    task.save(decoder, tmp_path / "model")
    assert json.loads((tmp_path / "model" / "kdbench.json").read_text())["decoder"] == kind
    again = task.load(tmp_path / "model")
    first, second = (task.decode(way, task.test_prompts()) for way in (decoder, again))
    assert (first.tokens, first.forwards) == (second.tokens, second.forwards)


def test_a_bare_network_is_no_decoder(make):
    task = make()
    with pytest.raises(ArtifactError, match=r"a draft is returned as Speculative\(draft\)"):
        task.check(task.student())
    with pytest.raises(ArtifactError, match="train returned None"):
        task.check(None)


def test_unknown_kinds_of_decoders_are_said():
    with pytest.raises(ArtifactError, match="no decoder is of kind 'speculativ'"):
        Decoder.of_kind("speculativ")


def test_two_decoders_cannot_have_the_same_kind():
    with pytest.raises(TypeError, match="both have a decoder of kind 'autoregressive'"):
        type("Other", (Autoregressive,), {"kind": "autoregressive", "__module__": "elsewhere"})


def test_the_student_is_a_draft_that_has_read_the_text(make):
    task = make()
    draft = task.student()
    assert sum(p.numel() for p in draft.parameters()) < sum(p.numel() for p in task.teacher().parameters())
    again = make(seed=1).student()
    assert all(torch.equal(a, b) for a, b in zip(draft.state_dict().values(), again.state_dict().values(), strict=True))
