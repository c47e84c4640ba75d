"""Meta-DMoE: the graph through the inner step, left-out experts, unlabelled adaptation from the same start."""

import copy
import json
from types import SimpleNamespace

import pytest
import torch

from kdbench.errors import UsageError
from kdbench.tracks.vision.domains import Episode, clusters_of, support_share
from kdbench.tracks.vision.models.adaptive import Mixture, penult, without_head
from kdbench_methods.vision import meta_dmoe as method


def mixture(mode="distill", ilr=0.1, experts=3, seed=0):
    torch.manual_seed(seed)
    made = Mixture(
        student="rn(2,1)",
        expert="rn(2,1)",
        experts=experts,
        heads=2,
        depth=1,
        dropout=0.0,
        ilr=ilr,
        mode=mode,
        support=4,
        num_classes=5,
        size=16,
    ).eval()
    made.experts.requires_grad_(False)
    return made


def episode(count=10, support=4):
    g = torch.Generator().manual_seed(1)
    x, y = torch.randn(count, 3, 16, 16, generator=g), torch.randint(5, (count,), generator=g)
    return Episode(x, y, torch.arange(count), support=support)


def gradients(model, **settings):
    params = SimpleNamespace(**{"ilr": 0.1, "second_order": True, **settings})
    batch = episode()
    outer, inner = method.outer_loss(model, batch, model.tokens(batch.x[: batch.support]), params)
    outer.backward()
    return outer, inner


def test_the_aggregator_gets_its_gradient_through_the_inner_step():
    model = mixture()
    gradients(model)
    assert max(float(p.grad.abs().max()) for p in model.aggregator.layers.parameters()) > 0
    assert all(expert.grad is None for expert in model.experts.parameters())
    assert model.student.fc.weight.grad.abs().max() > 0


def test_without_an_inner_step_the_aggregator_gets_exactly_none():
    model = mixture()
    gradients(model, ilr=0.0)
    reached = [p for name, p in model.aggregator.named_parameters() if not name.startswith("fc.")]
    assert all(p.grad is None or not p.grad.any() for p in reached)
    assert model.student.stem[0].weight.grad.abs().max() > 0


def test_the_first_order_variant_gives_the_aggregator_nothing():
    model = mixture()
    gradients(model, second_order=False)
    assert all(p.grad is None for p in model.aggregator.parameters())


def test_orders_agree_in_value_and_differ_in_gradient():
    full, first = mixture(), mixture()
    a, _ = gradients(full)
    b, _ = gradients(first, second_order=False)
    assert a.item() == pytest.approx(b.item(), rel=1e-5)
    one, other = full.student.stem[0].weight.grad, first.student.stem[0].weight.grad
    assert not torch.allclose(one, other)


def test_the_own_expert_is_left_out():
    tokens = torch.arange(12.0).view(2, 3, 2)
    left = method.leave_out(tokens, 1)
    assert torch.equal(left, tokens[:, [0, 2]])


def test_clusters_partition_the_domains():
    parts = clusters_of(8, 4)
    assert [z for part in parts for z in part] == list(range(8))
    assert len(clusters_of(3, 4)) == 3
    with pytest.raises(UsageError, match="two clusters"):
        clusters_of(1, 4)


@pytest.mark.parametrize(("count", "support"), [(64, 24), (30, 11), (2, 1)])
def test_small_domains_are_shared_in_proportion(count, support):
    assert support_share(count, 24, 40) == support


@pytest.mark.parametrize("mode", method.MODES)
def test_adaptation_starts_from_the_same_network_each_time(mode):
    model = mixture(mode)
    before = copy.deepcopy(model.state_dict())
    x, other = torch.randn(2, 4, 3, 16, 16)
    with torch.no_grad():
        first = model.adapted(x)(x)
        model.adapted(other)
        again = model.adapted(x)(x)
    assert torch.equal(first, again)
    after = model.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    assert first.shape == (4, 5)


def test_one_inner_step_lowers_the_inner_loss_and_leaves_the_head():
    model = mixture(ilr=0.05)
    x = torch.randn(8, 3, 16, 16)
    with torch.no_grad():
        target = model.aggregator(model.tokens(x))
    adapted = model.adapted(x)
    gaps = [(penult(net, x) - target).square().mean().item() for net in (model.student, adapted)]
    assert gaps[1] < gaps[0]
    assert torch.equal(adapted.fc.weight, model.student.fc.weight)
    assert set(without_head(model.student)) == {n for n, _ in model.student.named_parameters() if "fc." not in n}


def test_entropy_and_statistics_change_the_normalisation_alone():
    x = 3 + torch.randn(16, 3, 16, 16)
    for mode, changed in (("entropy", {"weight", "bias"}), ("bn", {"running_mean", "running_var"})):
        model = mixture(mode)
        before, after = model.student.state_dict(), model.adapted(x).state_dict()
        moved = {name for name in before if not torch.equal(before[name], after[name])} - {
            name for name in before if name.endswith("num_batches_tracked")
        }
        assert moved
        assert all(name.rsplit(".", 1)[1] in changed for name in moved)
        assert not any(name.startswith("fc.") or "conv" in name for name in moved)


def test_a_job_adapts_to_disjoint_domains_without_labels(smoke, tmp_path):
    outcome = smoke("meta_dmoe", "multidomain-pseudo", {"expert": "rn(2,1)", "experts": 2})
    assert outcome.status == "ok", outcome.error
    table = json.loads((tmp_path / "meta_dmoe" / "artifacts" / "domains.json").read_text())
    assert [name for name in table if name.startswith("held_out")] == ["held_out_8", "held_out_9"]
    assert len(table) == 6
    assert outcome.extra["distill_top1"] == pytest.approx(outcome.metrics["top1"])
    assert outcome.extra["distill_worst_top1"] == pytest.approx(outcome.metrics["worst_domain_top1"])
    assert outcome.extra["adaptation_mflops"] > 0
    assert outcome.cost["aux_steps"] == 2 * 2 + 4


def test_without_adaptation_the_score_is_that_of_the_student(smoke):
    outcome = smoke("meta_dmoe", "multidomain-pseudo", {"expert": "rn(2,1)", "adapt": "none", "meta": False})
    assert outcome.status == "ok", outcome.error
    assert outcome.extra["none_top1"] == pytest.approx(outcome.metrics["top1"])


def test_tasks_without_domains_are_refused(smoke):
    outcome = smoke("meta_dmoe", "digits-gap")
    assert outcome.status == "failed"
    assert "multidomain" in outcome.error.message
