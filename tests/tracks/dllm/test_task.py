"""What a task of the track gives to methods, measures and refuses."""

from __future__ import annotations

import json

import pytest
import torch
from pydantic import ValidationError

from kdbench.errors import ArtifactError, TestDataError
from kdbench.tracks.dllm.decoders.base import Decoder
from kdbench.tracks.dllm.decoders.causal import Causal
from kdbench.tracks.dllm.decoders.freedave import Drafting, FreeDave
from kdbench.tracks.dllm.decoders.oracle import OracleDecoder
from kdbench.tracks.dllm.decoders.policy import PolicyDecoder
from kdbench.tracks.dllm.policies.basic import All, Threshold, TopK
from kdbench.tracks.dllm.spec import DllmSpec, Gate
from tests.tracks.dllm.conftest import registry


@pytest.mark.parametrize("name", ["fixed", "squares", "arith"])
def test_every_task_gives_its_metrics_to_every_decoder(make, name):
    task = make(name)
    task.prepare()
    task.phase = "evaluate"
    seq = task.score(PolicyDecoder(task.teacher(), TopK(1), [TopK(1)]))
    assert set(seq) == {metric.name for metric in task.spec.all_metrics()}
    assert seq["nfe"] == task.length
    assert seq["agreement"] == seq["tpf_canvas"] == 1
    assert seq["accuracy"] == seq["accuracy_full"]
    for decoder in (OracleDecoder(task.teacher()), FreeDave(task.teacher(), Drafting(4))):
        found = task.score(decoder)
        assert found["agreement"] == 1
        assert found["nfe"] < seq["nfe"]
        assert found["accuracy_full"] == found["accuracy"] == seq["accuracy"]
    causal = task.scores(Causal(task.causal_reference()))
    assert causal.metrics["nfe"] == causal.metrics["length"]
    assert set(causal.examples) == {"accuracy", "nfe", "agreement", "valid_other"}


def test_fewer_forwards_are_all_that_budgets_give(make):
    task = make("arith", phase="evaluate")
    prompts = task.split("test").prompts
    for decoder in (PolicyDecoder(task.teacher(), TopK(1)), FreeDave(task.teacher(), Drafting(4))):
        for budget in (4, 8, 16, 32):
            assert task.decode(decoder, prompts, budget=budget).forwards.amax() <= budget


def test_the_text_of_the_teacher_is_made_once(make, monkeypatch):
    task = make(phase="evaluate")
    one = task.reference("val")
    monkeypatch.setattr(task, "decode", lambda *_, **__: pytest.fail("asked again"))
    assert torch.equal(task.reference("val").tokens, one.tokens)


def test_trajectories_are_made_once_and_paid_by_all(make, monkeypatch):
    task = make()
    known = task.trajectories(7)
    assert len(known) == 7
    assert task.budget.spent["teacher_queries"] == 7 * 12
    monkeypatch.setattr(task, "decode", lambda *_, **__: pytest.fail("asked again"))
    again = task.trajectories(7)
    assert torch.equal(again.tokens, known.tokens)
    assert task.budget.spent["teacher_queries"] == 2 * 7 * 12
    assert torch.equal(known.correct, task.correct("train", known.tokens, torch.arange(7)))
    assert len(make().trajectories(1000)) == 48


def test_sampled_trajectories_are_others(make):
    task = make()
    assert not torch.equal(task.trajectories(7, temperature=1.0).tokens, task.trajectories(7).tokens)


def test_test_problems_are_out_of_reach_in_training(make):
    task = make()
    for ask in (lambda: task.split("test"), lambda: task.reference("test")):
        with pytest.raises(TestDataError):
            ask()
    task.prepare()
    assert task.phase == "train"
    assert task.budget.spent == {}


def test_the_student_starts_as_the_teacher(make):
    task = make()
    pairs = list(zip(task.student().parameters(), task.teacher().parameters(), strict=True))
    assert all(torch.equal(one, other) and one is not other for one, other in pairs)
    assert all(one.requires_grad and not other.requires_grad for one, other in pairs)


def test_forwards_of_the_teacher_are_metered_in_training(make):
    task = make()
    batch = next(iter(task.train_loader()))
    task.teacher()(torch.cat([batch.prompts.ids, batch.answer], 1))
    assert task.budget.spent["teacher_queries"] == len(batch) == 4


@pytest.mark.parametrize("kind", ["policy", "oracle", "causal", "freedave", "student"])
def test_what_is_saved_writes_the_same(make, tmp_path, kind):
    task = make(phase="evaluate")
    student = task.student()
    with torch.no_grad():
        student.head.bias += torch.linspace(0, 1, 48)
    decoder = {
        "policy": lambda: PolicyDecoder(task.teacher(), Threshold(0.2), [All(), TopK(2)], "eos"),
        "oracle": lambda: OracleDecoder(task.teacher()),
        "causal": lambda: Causal(task.causal_reference()),
        "freedave": lambda: FreeDave(task.teacher(), Drafting(3, eager=True)),
        "student": lambda: PolicyDecoder(student, Threshold(0.2)),
    }[kind]()
    task.save(decoder, tmp_path / "model")
    again = task.load(tmp_path / "model")
    assert json.loads((tmp_path / "model" / "kdbench.json").read_text())["decoder"] == again.kind == decoder.kind
    first, second = (task.decode(way, task.split("test").prompts) for way in (decoder, again))
    assert torch.equal(first.tokens, second.tokens)
    assert torch.equal(first.forwards, second.forwards)
    assert len(again.frontier()) == len(decoder.frontier())


def test_a_bare_network_is_no_decoder(make):
    task = make()
    with pytest.raises(ArtifactError, match=r"a network is returned as PolicyDecoder\(student, Threshold\(0.9\)\)"):
        task.check(task.student())
    with pytest.raises(ArtifactError, match="train returned None"):
        task.check(None)
    with pytest.raises(ArtifactError, match="no decoder is of kind 'polcy'"):
        Decoder.of_kind("polcy")


def test_a_task_that_says_nothing_says_why(make):
    task = make(phase="evaluate")
    assert task.board_problems() == []
    task.spec = task.spec.model_copy(update={"gate": Gate(accuracy=1.0, speedup=100.0)})
    accuracy, speedup = task.board_problems()
    assert "one token per step the teacher solves" in accuracy
    assert "nothing can be written in parallel" in speedup
    task.spec = task.spec.model_copy(update={"gate": Gate(accuracy=0.0, speedup=1.0)})
    assert task.board_problems() == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"decoding": {"block": 5}}, "length 12 is not a multiple of block 5"),
        ({"student": {"lora": {"rank": 2}}}, "adapters .* are for models of the hub"),
        ({"teacher": {"kind": "hub", "name": "x/y"}}, "belongs to data of kind 'hf-problems'"),
        ({"teacher": {"kind": "trained", "network": {"width": 10, "heads": 4}}}, "not a multiple of heads"),
    ],
)
def test_what_does_not_go_together_is_refused(changes, message):
    values = registry().task("dllm/fixed", "smoke").model_dump()
    with pytest.raises(ValidationError, match=message):
        DllmSpec.model_validate(values | changes)
