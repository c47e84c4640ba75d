"""EdgeFD: masks, its limit without a filter, and what the clients' evaluation says."""

import json

import pytest
import torch

from kdbench.tracks.vision.federated import filter_quality
from kdbench.tracks.vision.models.clients import Clients

FEW = {"models": ["rn(2,1)", "vit(8,1,2)"], "rounds": 3}


def test_without_filter_and_own_rule_it_is_fedmd(smoke):
    mine = smoke("edgefd", "federated", {"filter": "none", "own": False, **FEW})
    theirs = smoke("fedmd", "federated", FEW)
    assert mine.status == "ok", mine.error
    assert mine.metrics == theirs.metrics
    shared = set(theirs.extra) & set(mine.extra)
    assert {"round_upload_bytes", "local_top1", "filter_precision"} <= shared
    assert all(mine.extra[name] == theirs.extra[name] for name in shared)


@pytest.mark.parametrize("how", ["kmeans", "kulsif", "oracle"])
def test_clients_always_speak_about_their_own(smoke, tmp_path, how):
    outcome = smoke("edgefd", "federated", {"filter": how, **FEW})
    assert outcome.status == "ok", outcome.error
    rounds = json.loads((tmp_path / "edgefd" / "artifacts" / "rounds.json").read_text())
    kept = torch.tensor(rounds["keeps"], dtype=torch.bool)
    assert kept.shape == (3, 30)
    own = torch.arange(30)[None] // 10 == torch.arange(3)[:, None]
    assert kept[own].all()
    assert len(rounds["upload_bytes"]) == 3
    if how == "oracle":
        assert outcome.extra["filter_precision"] == 1
        assert outcome.extra["filter_recall"] == 1
        assert (kept == own).all()  # classes are disjoint
    assert outcome.cost["aux_steps"] == 2 * outcome.cost["steps"]
    assert outcome.extra["filter_multiply_adds"] > 0 or how == "oracle"


def test_filters_differ_in_what_is_sent(smoke):
    sent = {
        how: smoke("edgefd", "federated-weak", {"filter": how, "percentile": 50, "rounds": 1, **FEW | {"rounds": 1}})
        for how in ("kmeans",)
    }
    everything = smoke("fedmd", "federated-weak", FEW | {"rounds": 1})
    assert sent["kmeans"].extra["round_upload_bytes"] < everything.extra["round_upload_bytes"]


def test_the_score_is_the_mean_over_the_clients(smoke, tmp_path):
    outcome = smoke("local_only", "federated", {"models": ["rn(2,1)"]})
    assert outcome.status == "ok", outcome.error
    assert outcome.extra["worst_client_top1"] <= outcome.metrics["top1"] + 1e-9
    assert outcome.extra["round_upload_bytes"] == 0
    held = outcome.extra["local_top1"], outcome.extra["foreign_top1"]
    assert min(held) <= outcome.metrics["top1"] <= max(held)


def test_averaging_makes_one_network(smoke):
    outcome = smoke("fedavg", "federated", {"model": "rn(2,1)", "rounds": 2})
    assert outcome.status == "ok", outcome.error
    assert outcome.extra["worst_client_top1"] == pytest.approx(outcome.metrics["top1"])
    assert outcome.extra["round_upload_bytes"] > 0


def test_tasks_without_clients_are_refused(smoke):
    outcome = smoke("edgefd", "digits-gap")
    assert outcome.status == "failed"
    assert "family federated" in outcome.error.message


def test_filter_quality_leaves_own_images_out():
    own = torch.tensor([[True, False, False, False]])
    kept, known = torch.tensor([[True, True, True, False]]), torch.tensor([[True, True, False, True]])
    assert filter_quality(kept, known, own) == {
        "filter_precision": 0.5,
        "filter_recall": 0.5,
        "filter_kept": pytest.approx(2 / 3),
    }


def test_clients_are_an_ensemble_when_called():
    clients = Clients(["rn(2,1)", "vit(8,1,2)"], num_classes=4).eval()
    x = torch.randn(3, 3, 16, 16)
    probs = torch.stack([member(x).softmax(-1) for member in clients.members]).mean(0)
    assert torch.allclose(clients(x).softmax(-1), probs, atol=1e-6)
    assert clients.taps(x).penult.shape == (3, 8 + 8)
