"""SD-DARTS: the vote, the ring of snapshots, DARTS as its limit, what is measured of the supernet."""

import json
import math
from copy import deepcopy

import pytest
import torch
import torch.nn.functional as F

from kdbench.catalog import Catalog
from kdbench.conformance.interrupting import curve, run_in_two
from kdbench.job import Job
from kdbench.registry import discover
from kdbench.schedule.verify import meters
from kdbench.tracks.vision import TRACK
from kdbench.tracks.vision.models.cells import OPS, Supernet
from kdbench.tracks.vision.task import VisionTask
from kdbench.training.loop import rate
from kdbench.worker import run_job
from kdbench_methods.vision import sd_darts as method

SMALL = {"channels": 2, "nodes": 2, "images": 16, "every": 2, "warmup": 2, "steps": 6}


def params(**changed):
    return method.SdDartsParams(**(SMALL | changed))


@pytest.fixture
def task(tmp_path):
    spec = Catalog({TRACK.name: TRACK}).resolve("vision/search", "smoke", {})
    return VisionTask(spec, seed=0, method="vision/sd_darts", folder=tmp_path)


# --- the vote ---------------------------------------------------------------------------------------------------------


def test_snapshots_outside_of_the_majority_do_not_count():
    probs = torch.tensor([[0.7, 0.2, 0.1], [0.5, 0.4, 0.1], [0.1, 0.8, 0.1]])
    voted = method.vote(probs.log()[:, None]).exp()[0]
    assert voted.tolist() == pytest.approx([0.6, 0.3, 0.1])


def test_without_a_majority_all_count():
    probs = torch.tensor([[0.7, 0.2, 0.1], [0.2, 0.7, 0.1], [0.1, 0.1, 0.8]])
    for how in ("majority", "mean"):
        assert method.vote(probs.log()[:, None], how).exp()[0].tolist() == pytest.approx(probs.mean(0).tolist())
    assert torch.allclose(
        method.vote(probs[:2].log()[:, None]).exp()[0], probs[:2].mean(0)
    )  # one of two is no majority


def test_the_vote_is_a_distribution_for_each_sample():
    g = torch.Generator().manual_seed(0)
    log_probs = torch.randn(5, 40, 4, generator=g).log_softmax(-1)
    for how in ("majority", "mean"):
        assert torch.allclose(method.vote(log_probs, how).exp().sum(-1), torch.ones(40), atol=1e-6)
    assert torch.equal(method.vote(log_probs[:1]), method.vote(log_probs[:1], "mean"))
    assert not torch.allclose(method.vote(log_probs), method.vote(log_probs, "mean"))


# --- snapshots --------------------------------------------------------------------------------------------------------


def test_the_ring_keeps_the_latest_weights_alphas_and_statistics():
    net, alphas = Supernet(2, 2, 2, num_classes=3), method.Alphas(2)
    ring, x = method.Snapshots(net, alphas, 2), torch.randn(4, 3, 16, 16)
    assert len(ring) == 0
    states = []
    for _ in range(3):
        with torch.no_grad():
            for p in (*net.parameters(), *alphas.parameters()):
                p.add_(0.3 * torch.randn_like(p))
        net.train().mix(x, alphas())  # moves the running statistics
        ring.take(net, alphas)
        states.append((deepcopy(net).eval(), deepcopy(alphas)))
    assert len(ring) == 2
    with torch.no_grad():
        expected = [F.log_softmax(n.mix(x, a()) / 2, -1) for n, a in (states[2], states[1])]
    assert torch.equal(ring.train(False).log_probs(x, 2.0), torch.stack(expected))
    assert not any(p.requires_grad for p in ring.parameters())
    other = method.Snapshots(net, alphas, 2)
    other.load_state_dict(ring.state_dict())
    assert torch.equal(other.log_probs(x, 2.0), ring.log_probs(x, 2.0))


# --- DARTS ------------------------------------------------------------------------------------------------------------


def darts(task, p):
    """First-order DARTS, written out: a step of w, then one of alpha."""
    net, alphas = method.make_supernet(task, p)
    w_rows, alpha_rows = method.halves(task)
    theirs = task.train_loader("labeled", indices=alpha_rows, purpose="alpha")
    mine = task.train_loader("labeled", indices=w_rows)

    def forever(loader):
        while True:
            yield from loader

    mine, theirs = forever(mine), forever(theirs)
    w = torch.optim.SGD(net.parameters(), p.lr, momentum=0.9, nesterov=True, weight_decay=p.weight_decay)
    a = torch.optim.Adam(alphas.parameters(), p.alpha_lr, betas=(0.5, 0.999), weight_decay=p.alpha_decay)
    recipe = task.spec.recipe.model_copy(update={"schedule": "cosine", "warmup": 0.0})
    net.train()
    for step in range(p.steps):
        for group in w.param_groups:
            group["lr"] = p.lr * rate(step, p.steps, recipe)
        batch = next(mine)
        w.zero_grad()
        loss = F.cross_entropy(net.mix(batch.x, tuple(each.detach() for each in alphas())), batch.y, reduction="sum")
        (loss / len(batch)).backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 5.0)
        w.step()
        batch, kept = next(theirs), [b.clone() for b in net.buffers()]
        a.zero_grad()
        (F.cross_entropy(net.mix(batch.x, alphas()), batch.y, reduction="sum") / len(batch)).backward()
        a.step()
        with torch.no_grad():
            for buffer, before in zip(net.buffers(), kept, strict=True):
                buffer.copy_(before)
    return net, alphas


def test_without_weight_it_is_darts_bit_for_bit(task):
    p = params(weight=0.0)
    net, alphas = method.search(task, p)
    reference, theirs = darts(task, p)
    for mine, other in zip(alphas.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(mine, other)
    for mine, other in zip(net.parameters(), reference.parameters(), strict=True):
        assert torch.equal(mine, other)
    means = [
        (m.running_mean, o.running_mean)
        for m, o in zip(net.modules(), reference.modules(), strict=True)
        if hasattr(m, "running_mean")
    ]
    assert all(torch.equal(mine, other) for mine, other in means)


def test_distillation_begins_after_the_warmup(task):
    plain = method.search(task, params(weight=0.0))
    late = method.search(task, params(weight=5.0, warmup=6))
    early = method.search(task, params(weight=5.0))
    same, other = (
        [torch.equal(a, b) for a, b in zip(plain[0].parameters(), each[0].parameters(), strict=True)]
        for each in (late, early)
    )
    assert all(same)
    assert not all(other)


def test_alpha_does_not_see_the_half_of_w(task):
    w_rows, alpha_rows = method.halves(task)
    assert not set(w_rows.tolist()) & set(alpha_rows.tolist())
    assert len(w_rows) + len(alpha_rows) == len(task.split("labeled"))


# --- jobs -------------------------------------------------------------------------------------------------------------


def test_search_and_retraining(smoke, tmp_path):
    outcome = smoke("sd_darts", "search", SMALL)
    assert outcome.status == "ok", outcome.error
    extra = outcome.extra
    gap = extra["supernet_val_top1"] - extra["discretized_val_top1"]
    assert extra["discretization_gap"] == pytest.approx(gap)
    for name in ("hessian_w", "hessian_alpha", "loss_increase_w", "loss_increase_alpha"):
        assert math.isfinite(extra[name])
    made = json.loads((tmp_path / "sd_darts" / "artifacts" / "search.json").read_text())
    assert [len(genes) for genes in made["genotype"].values()] == [4, 4]
    assert {op for genes in made["genotype"].values() for op, _ in genes} <= set(OPS[1:])
    assert outcome.cost["aux_steps"] == 2 * 6
    assert outcome.cost["steps"] == 6


@pytest.mark.parametrize("changed", [{"average": 0.9, "alpha_kd": True, "teachers": 1}, {"search": "random"}])
def test_variants(smoke, changed):
    outcome = smoke("sd_darts", "search", SMALL | changed)
    assert outcome.status == "ok", outcome.error
    assert ("hessian_w" in outcome.extra) == (changed.get("search") != "random")


def test_a_search_goes_on_with_its_snapshots_averages_and_alphas(tmp_path):
    registry = discover()
    found, spec = registry.method("sd_darts", "vision"), registry.task("vision/search", "smoke")
    job = Job(
        method=found.key,
        method_digest=found.digest,
        params=found.canonical(SMALL | {"average": 0.9, "alpha_kd": True, "every": 1}),
        task=spec.name,
        spec=spec.identity(),
        seed=0,
        track_version=1,
        method_file=found.path,
        module=found.module,
    )
    whole = run_job(job, tmp_path / "whole")
    assert whole.status == "ok", whole.error
    again, stopped = run_in_two(job, tmp_path / "again", 3)
    assert stopped == 3
    assert (again.metrics, again.extra, meters(again)) == (whole.metrics, whole.extra, meters(whole))
    assert curve(tmp_path / "again") == curve(tmp_path / "whole")
    assert again.provenance["resumed"]
