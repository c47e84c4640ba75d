"""BD-KD: limits of the balanced divergence, switching by sample, detached partners, online training."""

import json

import pytest
import torch

from kdbench.losses.divergences import fkl, sym_kl
from kdbench_methods.vision import bd_kd as method


def params(**values):
    return method.BdKdParams(**values)


def logits(b=16, c=6, seed=0):
    g = torch.Generator().manual_seed(seed)
    return [2 * torch.randn(b, c, generator=g, dtype=torch.float64) for _ in range(3)]


def gradient(loss, *at):
    at = [each.clone().requires_grad_(True) for each in at]
    return torch.autograd.grad(loss(*at), at, allow_unused=True, materialize_grads=True)


@pytest.mark.parametrize("balance", ["switch", "soft", "sum"])
@pytest.mark.parametrize("t", [1.0, 4.0])
def test_with_equal_weights_it_is_the_symmetric_divergence_of_jeffreys(balance, t):
    s, z, _ = logits()
    own = params(balance=balance, delta=1.0, temperature=t)
    value = method.balanced_divergence(s, z, own).item()
    assert value == pytest.approx(sym_kl(s, z, temperature=t).mean().item(), rel=1e-12)
    assert value == pytest.approx(method.balanced_divergence(z, s, own).item(), rel=1e-12)


@pytest.mark.parametrize("balance", ["switch", "soft"])
def test_the_weights_follow_the_distributions_when_these_are_swapped(balance):
    # The divergence from the less certain network has the weight delta, whichever of the two that is.
    s, z, _ = logits()
    one, other = (method.balanced_divergence(a, b, params(balance=balance)).item() for a, b in ((s, z), (z, s)))
    assert one == pytest.approx(other, rel=1e-12)
    jeffreys = sym_kl(s, z, temperature=2.0).mean().item()
    assert jeffreys * 1.01 < one < 2 * jeffreys


def test_every_sample_has_its_own_weights():
    sure, unsure = torch.tensor([[8.0, 0, 0]]), torch.tensor([[1.0, 0, 0]])
    s, z = torch.cat([sure, unsure]), torch.cat([unsure, sure])
    gap = method.overconfident(s, z, 1.0)
    assert gap[0] > 0 > gap[1]
    w_forward, w_reverse = method.weights(gap, params(delta=2.0))
    assert w_forward.tolist() == [2, 1]
    assert w_reverse.tolist() == [1, 2]
    each = [method.balanced_divergence(a, b, params()) for a, b in ((sure, unsure), (unsure, sure))]
    assert method.balanced_divergence(s, z, params()).item() == pytest.approx(sum(map(float, each)) / 2, rel=1e-6)


def test_the_soft_switch_becomes_the_hard_one():
    s, z, _ = logits()
    gap = method.overconfident(s, z, 2.0)
    assert gap.abs().min() > 1e-3
    for hard, soft in zip(
        method.weights(gap, params()), method.weights(gap, params(balance="soft", kappa=1e-6)), strict=True
    ):
        torch.testing.assert_close(hard, soft)
    middle = method.weights(torch.zeros(1), params(balance="soft", delta=3.0))
    assert [w.item() for w in middle] == [2, 2]


@pytest.mark.parametrize("balance", ["forward", "reverse"])
def test_one_divergence_alone(balance):
    s, z, _ = logits()
    a, b = (s, z) if balance == "forward" else (z, s)
    alone = method.balanced_divergence(s, z, params(balance=balance, temperature=1.0))
    assert alone.item() == pytest.approx(fkl(a, b).mean().item(), rel=1e-12)


def test_no_gradient_crosses_between_networks():
    z, s, peer = logits()
    for own, others in ((0, (1, 2)), (1, (0, 2)), (2, (0, 1))):
        grads = gradient(lambda *networks, own=own: method.pairwise(networks, params())[own], z, s, peer)
        assert grads[own].abs().max() > 1e-3
        assert all(grads[other].abs().max() == 0 for other in others)


def test_forward_alone_at_temperature_one_is_mutual_learning():
    z, s, _ = logits()
    large, small = method.pairwise([z, s], params(balance="forward", temperature=1.0))
    assert small.item() == pytest.approx(fkl(s, z).mean().item(), rel=1e-12)
    assert large.item() == pytest.approx(fkl(z, s).mean().item(), rel=1e-12)


def test_several_students_average_their_pairs():
    z, s, peer = logits()
    _, one, _ = method.pairwise([z, s, peer], params())
    pairs = [method.balanced_divergence(s, other, params()).item() for other in (z, peer)]
    assert one.item() == pytest.approx(sum(pairs) / 2, rel=1e-12)
    _, alone = method.pairwise([z, s], params())
    assert alone.item() == pytest.approx(pairs[0], rel=1e-12)


def test_the_large_network_starts_from_scratch_and_learns_along(smoke, tmp_path):
    outcome = smoke("bd_kd", "digits-gap", {"students": 2})
    assert outcome.status == "ok", outcome.error
    assert (outcome.cost["steps"], outcome.cost["aux_steps"]) == (6, 12)
    assert "teacher_queries" not in outcome.cost
    assert 0 <= outcome.extra["overconfident_share"] <= 1
    folder = tmp_path / "bd_kd" / "artifacts"
    diagram = json.loads((folder / "reliability.json").read_text())
    gaps = [w * abs(a - b) for w, a, b in zip(*(diagram[k] for k in ("share", "accuracy", "confidence")), strict=True)]
    assert sum(gaps) == pytest.approx(outcome.metrics["ece"], abs=1e-9)
    assert not (folder / "large").exists()


def test_the_students_share_of_parameters_is_that_of_the_student(smoke):
    assert smoke("bd_kd", "digits-gap").cost["parameters"] == smoke("no_kd", "digits-gap").cost["parameters"]


def test_recalibration_changes_no_prediction(smoke):
    plain, scaled = smoke("kd", "digits-gap"), smoke("kd_recalibrated", "digits-gap")
    assert scaled.status == "ok", scaled.error
    assert scaled.metrics["top1"] == plain.metrics["top1"]
    assert scaled.metrics["nll"] != pytest.approx(plain.metrics["nll"], rel=1e-3)
