"""Logit standardization: invariances, orthogonality, and what is and is not standardised."""

import json

import pytest
import torch
import torch.nn.functional as F

from kdbench.losses.divergences import fkl
from kdbench.losses.logits import dist, dkd, kd_kl, zscore
from kdbench_methods.vision import logit_standardization as method

HOSTS = ("kd", "dkd", "dist", "mlkd", "ctkd", "pld")


def params(**values):
    return method.LogitStandardizationParams(**values)


def logits(b=8, c=6, seed=0):
    g = torch.Generator().manual_seed(seed)
    s, t = (3 * torch.randn(b, c, generator=g, dtype=torch.float64) for _ in range(2))
    return s, t, torch.randint(c, (b,), generator=g)


def total(s, t, y, **values):
    return sum(method.host_losses(s, t, y, params(**values)).values())


@pytest.mark.parametrize("host", ["kd", "dkd", "dist", "ctkd"])
def test_affine_changes_of_either_network_change_nothing(host):
    s, t, y = logits()
    reference = total(s, t, y, host=host).item()
    a = 0.2 + 5 * torch.rand(len(y), 1, dtype=torch.float64)
    b = 10 * torch.randn(len(y), 1, dtype=torch.float64)
    assert total(a * s + b, t, y, host=host).item() == pytest.approx(reference, rel=1e-5)
    assert total(s, a * t + b, y, host=host).item() == pytest.approx(reference, rel=1e-5)


@pytest.mark.parametrize("host", ["kd", "dkd", "dist"])
def test_gradient_has_zero_sum_and_is_orthogonal_to_the_centred_logits(host):
    s, t, y = logits()
    s.requires_grad_(True)
    (g,) = torch.autograd.grad(total(s, t, y, host=host), s)
    centred = (s - s.mean(-1, keepdim=True)).detach()
    assert g.abs().max() > 1e-3
    assert g.sum(-1).abs().max() < 1e-9
    assert ((g * centred).sum(-1).abs() / (g.norm(dim=-1) * centred.norm(dim=-1))).max() < 1e-6


def test_plain_distillation_has_neither_property():
    s, t, y = logits()
    reference = total(s, t, y, preprocess="none").item()
    assert total(2 * s, t, y, preprocess="none").item() != pytest.approx(reference, rel=1e-2)


def test_mean_subtraction_alone_changes_nothing():
    s, t, y = logits()
    one, other = (total(s, t, y, preprocess=how).item() for how in ("mean", "none"))
    assert one == pytest.approx(other, rel=1e-12)


def test_statistics_are_separate_and_temperatures_are_per_sample():
    # Z(z) / tau gives softmax(z / (tau std z)): the temperature of each network and sample is its own.
    s, t, y = logits()
    tau = 2.0
    own = fkl(s / (tau * s.std(-1, keepdim=True)), t / (tau * t.std(-1, keepdim=True))).mean()
    assert total(s, t, y, w_kd=1.0).item() == pytest.approx(tau**2 * own.item(), rel=1e-5)
    shared = (tau * t.std(-1, keepdim=True)).expand_as(t)
    assert fkl(s / shared, t / shared).mean().item() != pytest.approx(own.item(), rel=1e-2)


def test_at_tau_one_it_is_distillation_with_standard_deviation_temperatures():
    s, t, y = logits()
    p, q = F.softmax(t / t.std(-1, keepdim=True), -1), F.log_softmax(s / s.std(-1, keepdim=True), -1)
    expected = F.kl_div(q, p, reduction="batchmean")
    assert total(s, t, y, tau=1.0, w_kd=1.0).item() == pytest.approx(expected.item(), rel=1e-5)


def test_weights_are_those_of_the_released_recipes():
    s, t, y = logits()
    assert total(s, t, y).item() == pytest.approx(9 * kd_kl(zscore(s), zscore(t), 2.0).item())
    nine = dkd(zscore(s), zscore(t), y, alpha=9.0, beta=72.0, temperature=2.0)
    assert total(s, t, y, host="dkd").item() == pytest.approx(nine.item())
    assert all(method.WEIGHTS[host] == (0.1, 9.0) for host in ("kd", "ctkd", "mlkd"))


def test_dist_as_a_host_weighs_as_much_as_it_does_alone():
    s, t, y = logits()
    assert method.WEIGHTS["dist"] == (1.0, 1.0)
    alone = dist(zscore(s), zscore(t), temperature=2.0)
    assert total(s, t, y, host="dist").item() == pytest.approx(alone.item())


@pytest.mark.parametrize("host", HOSTS)
def test_every_term_of_a_host_has_its_weight(host):
    s, t, y = logits()
    one, three = (method.host_losses(s, t, y, params(host=host, w_kd=w)) for w in (1.0, 3.0))
    assert {name: 3 * term.item() for name, term in one.items()} == pytest.approx(
        {name: term.item() for name, term in three.items()}
    )


def test_multi_level_standardises_the_instance_level_alone():
    s, t, y = logits()
    one, scaled = (method.host_losses(z, t, y, params(host="mlkd")) for z in (s, 3 * s))
    assert one["instance"].item() == pytest.approx(scaled["instance"].item(), rel=1e-5)
    assert one["class"].item() != pytest.approx(scaled["class"].item(), rel=1e-2)
    assert one["batch"].item() != pytest.approx(scaled["batch"].item(), rel=1e-2)


def test_ranking_host_standardises_the_teachers_weights_alone():
    s, t, y = logits()
    reference = total(s, t, y, host="pld").item()
    assert total(s, 4 * t + 1, y, host="pld").item() == pytest.approx(reference, rel=1e-5)
    assert total(3 * s, t, y, host="pld").item() != pytest.approx(reference, rel=1e-2)


def test_a_shared_temperature_can_order_two_students_opposite_to_their_accuracy():
    # The teacher is confident of class 0. One student has its range but the wrong class; the other has exactly the
    # teacher's order in a sixth of the range. (Section 3 and figure 2 of the paper, constructed.)
    teacher = torch.tensor([[6.0, 5.0, 1.0]])
    wrong, right = torch.tensor([[5.4, 5.6, 1.0]]), teacher / 6
    assert wrong.argmax() != 0
    assert right.argmax() == 0
    assert fkl(wrong, teacher) < fkl(right, teacher)
    assert fkl(zscore(wrong), zscore(teacher)) > fkl(zscore(right), zscore(teacher))


@pytest.mark.parametrize("how", ["zscore", "mean", "l2", "max", "none"])
def test_constant_logits_stay_finite(how):
    s = torch.zeros(2, 5, requires_grad=True)
    loss = total(s, torch.zeros(2, 5), torch.tensor([0, 1]), preprocess=how)
    loss.backward()
    assert loss.isfinite()
    assert s.grad.isfinite().all()


@pytest.mark.parametrize("host", HOSTS)
def test_every_host_trains_and_the_spreads_are_logged(smoke, tmp_path, host):
    outcome = smoke("logit_standardization", "digits-gap", {"host": host})
    assert outcome.status == "ok", outcome.error
    assert outcome.cost["steps"] == 6
    assert "aux_steps" not in outcome.cost
    assert 0 <= outcome.extra["discordance_standardized"] <= 1
    rows = [json.loads(line) for line in (tmp_path / "logit_standardization" / "curve.jsonl").read_text().splitlines()]
    assert {"student_std", "teacher_std"} <= {name for row in rows for name in row}
