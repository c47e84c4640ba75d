"""Identities, invariances and limits of the losses on class logits."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from kdbench.losses import logits as L


def pair(b=8, c=6, seed=0, scale=3.0):
    g = torch.Generator().manual_seed(seed)
    s, t = (scale * torch.randn(b, c, generator=g, dtype=torch.float64) for _ in range(2))
    return s, t, torch.randint(c, (b,), generator=g)


def gradient(loss, s):
    s = s.clone().requires_grad_(True)
    (g,) = torch.autograd.grad(loss(s), s)
    return g


def test_cross_entropy_ignores_unlabelled_samples():
    s, _, y = pair()
    hidden = y.clone()
    hidden[3:] = -1
    assert L.cross_entropy(s, hidden) == pytest.approx(F.cross_entropy(s[:3], y[:3]).item())
    assert L.cross_entropy(s, torch.full_like(y, -1)) == 0
    assert gradient(lambda z: L.cross_entropy(z, torch.full_like(y, -1)), s).abs().max() == 0


def test_kd_is_zero_at_the_teacher_and_positive_elsewhere():
    s, t, _ = pair()
    assert L.kd_kl(t, t, 4.0).abs() < 1e-12
    assert L.kd_kl(s, t, 4.0) > 0


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_kd_matches_its_definition(temperature):
    s, t, _ = pair()
    p, q = F.softmax(t / temperature, -1), F.softmax(s / temperature, -1)
    expected = temperature**2 * (p * (p.log() - q.log())).sum(-1).mean()
    assert L.kd_kl(s, t, temperature).item() == pytest.approx(expected.item(), rel=1e-10)


def test_kd_at_high_temperature_is_a_regression_of_centred_logits():
    # Hinton et al. 2015, section 2.1: the limit is 1 / (2 C) |s - t|^2 for centred logits.
    s, t, _ = pair()
    s, t = s - s.mean(-1, keepdim=True), t - t.mean(-1, keepdim=True)
    limit = (s - t).square().sum(-1).mean() / (2 * s.shape[1])
    assert L.kd_kl(s, t, 1e4).item() == pytest.approx(limit.item(), rel=1e-3)


def test_no_gradient_reaches_the_teacher():
    s, t, y = pair()
    t.requires_grad_(True)
    s.requires_grad_(True)
    losses = [
        L.kd_kl(s, t, 2.0),
        L.dkd(s, t, y),
        L.dist(s, t),
        L.ofa(s, t, y, eps=1.5),
        L.correlation_gap(s, t, 2.0, "batch"),
        L.correlation_gap(s, t, 2.0, "class"),
    ]
    torch.stack(losses).sum().backward()
    assert t.grad is None
    assert s.grad.abs().max() > 0


def test_zscore_has_unit_sample_deviation_and_is_finite_for_constant_logits():
    z = L.zscore(pair()[0])
    assert z.mean(-1).abs().max() < 1e-12
    assert (z.std(-1) - 1).abs().max() < 1e-6
    assert L.zscore(torch.ones(2, 5)).abs().max() == 0


@settings(max_examples=30, deadline=None)
@given(scale=st.floats(0.05, 50), shift=st.floats(-100, 100), seed=st.integers(0, 1000))
def test_zscore_ignores_scale_and_shift(scale, shift, seed):
    s, _, _ = pair(seed=seed)
    assert (L.zscore(scale * s + shift) - L.zscore(s)).abs().max() < 1e-5


def test_dkd_with_the_teachers_own_weight_is_kd():
    # Zhao et al. 2022, equation 6: KD = TCKD + (1 - p_target) NCKD, per sample.
    s, t, y = pair(b=1)
    temperature = 4.0
    rest = 1 - F.softmax(t / temperature, -1)[0, y[0]].item()
    decoupled = L.dkd(s, t, y, alpha=1.0, beta=rest, temperature=temperature)
    assert decoupled.item() == pytest.approx(L.kd_kl(s, t, temperature).item(), rel=1e-9)


def test_dkd_non_target_part_does_not_see_the_target_logit():
    s, t, y = pair()
    moved = s.clone()
    moved[torch.arange(len(y)), y] += 5
    one, other = (L.dkd(z, t, y, alpha=0.0, beta=1.0).item() for z in (s, moved))
    assert one == pytest.approx(other, rel=1e-9)


def test_dist_ignores_scale_and_shift_of_probabilities():
    s, t, _ = pair()
    assert L.dist(t, t).abs() < 1e-12
    assert L.dist(s, t) > 0
    p = F.softmax(s, -1)
    assert (L.pearson(p, 0.3 * p + 0.1) - 1).abs().max() < 1e-9
    assert (L.pearson(p, -p) + 1).abs().max() < 1e-9


def test_dist_on_a_uniform_student_has_a_finite_gradient():
    _, t, _ = pair()
    assert gradient(lambda z: L.dist(z, t), torch.zeros_like(t)).isfinite().all()


def test_correlation_gaps_vanish_at_the_teacher_and_ignore_what_they_should():
    s, t, _ = pair()
    for level in ("batch", "class"):
        assert L.correlation_gap(t, t, 4.0, level).abs() < 1e-12
        assert L.correlation_gap(s, t, 4.0, level) > 0
    # Sample similarities do not change when the classes are permuted, class similarities not when samples are.
    classes, samples = torch.randperm(6), torch.randperm(8)
    assert L.correlation_gap(t[:, classes], t, 4.0, "batch") < 1e-12
    assert L.correlation_gap(t[samples], t, 4.0, "class") < 1e-12


def test_correlation_gaps_do_not_grow_with_the_batch():
    # Every sample and class four times: the distributions of pairs are the same.
    s, t, _ = pair()
    for level in ("batch", "class"):
        one = L.correlation_gap(s, t, 2.0, level).item()
        assert L.correlation_gap(s.repeat(4, 1), t.repeat(4, 1), 2.0, level).item() == pytest.approx(one, rel=1e-9)


def test_ofa_with_exponent_one_is_cross_entropy_to_the_teacher():
    s, t, y = pair()
    expected = -(F.softmax(t, -1) * F.log_softmax(s, -1)).sum(-1).mean()
    assert L.ofa(s, t, y, eps=1.0).item() == pytest.approx(expected.item(), rel=1e-10)
    assert torch.allclose(
        gradient(lambda z: L.ofa(z, t, y, eps=1.0), s), gradient(lambda z: L.kd_kl(z, t, 1.0), s), atol=1e-12
    )


def test_ofa_enhances_the_target_and_fades_the_rest():
    _, t, y = pair()
    p = F.softmax(t, -1)
    one_hot = F.one_hot(y, 6).double()
    # The gradient at uniform logits is sum(w) / C - w for the weights w, so the weights can be read from it.
    uniform = torch.zeros_like(t)
    w = lambda eps: (p + one_hot) ** eps - one_hot  # noqa: E731
    for eps in (1.25, 1.5):
        g = gradient(lambda z, eps=eps: L.ofa(z, t, y, eps=eps), uniform) * len(y)
        assert torch.allclose(g, w(eps).sum(-1, keepdim=True) / 6 - w(eps), atol=1e-10)
        target = one_hot.bool()
        assert (w(eps)[target] > w(1.0)[target]).all()
        assert (w(eps)[~target] < w(1.0)[~target]).all()


def test_ofa_of_an_unlabelled_sample_has_no_target():
    s, t, y = pair()
    hidden = torch.full_like(y, -1)
    expected = -(F.softmax(t, -1) ** 1.5 * F.log_softmax(s, -1)).sum(-1).mean()
    assert L.ofa(s, t, hidden, eps=1.5).item() == pytest.approx(expected.item(), rel=1e-10)


def test_hard_labels_fall_back_to_the_teacher():
    _, t, y = pair()
    hidden = y.clone()
    hidden[::2] = -1
    labels = L.hard_labels(hidden, t)
    assert (labels[1::2] == y[1::2]).all()
    assert (labels[::2] == t.argmax(-1)[::2]).all()


def test_ensemble_logits_are_the_mean_probability():
    s, t, _ = pair()
    mean = (F.softmax(s, -1) + F.softmax(t, -1)) / 2
    assert torch.allclose(F.softmax(L.mean_probability_logits([s, t]), -1), mean, atol=1e-12)
    assert torch.allclose(F.softmax(L.mean_probability_logits([s]), -1), F.softmax(s, -1), atol=1e-12)


def test_learned_temperature_climbs_the_loss():
    s, t, _ = pair()
    learned = L.LearnedTemperature(low=1.0, span=20.0).double()
    assert learned(1.0).item() == pytest.approx(11.0)
    loss = L.kd_kl(s, t, learned(1.0))
    (g,) = torch.autograd.grad(loss, learned.theta)
    with torch.no_grad():
        up = L.kd_kl(s, t, learned.low + learned.span * torch.sigmoid(learned.theta - 1e-3 * g.sign()))
    assert up > loss  # a descent step of the optimizer increases the loss
    (still,) = torch.autograd.grad(L.kd_kl(s, t, learned(0.0)), learned.theta)
    assert still == 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_inputs_are_computed_in_float32(dtype):
    s, t, y = pair()
    s, t = s.to(dtype), t.to(dtype)
    for loss in (L.kd_kl(s, t, 4.0), L.dkd(s, t, y), L.dist(s, t), L.ofa(s, t, y), L.zscore(s), L.cross_entropy(s, y)):
        assert loss.dtype == torch.float32
        assert loss.isfinite().all()


def test_large_logits_stay_finite():
    s, t, y = pair(scale=1e4)
    for loss in (
        lambda z: L.kd_kl(z, t, 1.0),
        lambda z: L.dkd(z, t, y),
        lambda z: L.dist(z, t),
        lambda z: L.ofa(z, t, y, eps=1.5),
    ):
        assert math.isfinite(loss(s.float()).item())
        assert gradient(loss, s.float()).isfinite().all()


# --- dual-head distillation ---


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_binary_kl_matches_its_definition(temperature):
    s, t, _ = pair()
    half = torch.full_like(s, 0.5)
    for norm in (True, False):
        p = half if norm else torch.sigmoid(t / temperature)
        q = torch.sigmoid((s - t) / temperature) if norm else torch.sigmoid(s / temperature)
        terms = p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()
        expected = temperature**2 * terms.sum() / len(s)
        assert L.binary_kl(s, t, temperature=temperature, norm=norm).item() == pytest.approx(expected.item(), rel=1e-9)


@pytest.mark.parametrize("norm", [True, False])
def test_binary_kl_is_zero_at_the_teacher_alone_and_sees_shifts(norm):
    s, t, _ = pair()
    assert L.binary_kl(t, t, norm=norm).abs() < 1e-12
    assert L.binary_kl(t + 1, t, norm=norm) > 0.1
    assert L.binary_kl(s, t, norm=norm) > 0
    assert L.kd_kl(t + 1, t).abs() < 1e-12  # which no softmax does


def test_slope_of_the_binary_kl_is_bounded_by_half_the_temperature():
    s, t, _ = pair(scale=8.0)
    temperature = 2.0
    slope = len(s) * gradient(lambda z: L.binary_kl(z, t, temperature=temperature), s)
    expected = temperature * (torch.sigmoid((s - t) / temperature) - 0.5)
    torch.testing.assert_close(slope, expected, rtol=1e-9, atol=1e-12)
    assert slope.abs().max() <= temperature / 2


def test_binary_kl_is_clamped_where_float32_would_be_infinite():
    s = torch.tensor([[1e4, -1e4, 0.0]], requires_grad=True)
    loss = L.binary_kl(s, torch.zeros(1, 3), temperature=1.0)
    loss.backward()
    assert loss.item() == pytest.approx(-math.log(4 * 1e-8 * (1 - 1e-8)), rel=1e-5)
    assert s.grad.abs().max() == 0
