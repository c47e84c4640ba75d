"""Operators on the simplex: axioms with planted violators, contraction of anchored teachers, equivalence."""

import numpy as np
import pytest
import torch

from kdbench.training import simplex


def points(n=300, classes=10, seed=0):
    g = torch.Generator().manual_seed(seed)
    return simplex.normalise(-torch.rand(n, classes, generator=g, dtype=torch.float64).log())


@pytest.mark.parametrize("name", sorted(simplex.SOFTENING))
def test_every_operator_satisfies_every_axiom(name):
    violations = simplex.softening_violations(simplex.SOFTENING[name], points())
    assert all(simplex.satisfied(violations).values()), violations


def test_planted_violators_fail_where_they_must():
    spike = simplex.satisfied(simplex.softening_violations(simplex.spike, points()))
    assert not any(spike[axiom] for axiom in ("ranking", "continuity", "identity", "uniform"))
    shifted = simplex.satisfied(simplex.softening_violations(simplex.permutation, points()))
    assert not any(shifted[axiom] for axiom in ("ranking", "identity"))
    assert shifted["valid"]
    assert shifted["uniform"]
    sharpened = simplex.satisfied(simplex.softening_violations(lambda p, t: simplex.power(p, 1 / t), points()))
    assert not sharpened["entropy"]
    scaled = simplex.satisfied(simplex.softening_violations(lambda p, t: p / t, points()))
    assert not scaled["valid"]


def test_power_is_the_softmax_of_tempered_logits():
    z = torch.randn(50, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(simplex.power(z.softmax(-1), 3.0), (z / 3).softmax(-1))
    assert simplex.power(torch.tensor([1.0, 0.0]), 2.0).tolist() == [1.0, 0.0]


@pytest.mark.parametrize("name", ["uniform", "log1p"])
def test_matched_temperature_gives_the_wanted_entropy(name):
    p = points()
    wanted = float(simplex.entropy(simplex.power(p, 1.5)).mean())
    t = simplex.matched_temperature(simplex.SOFTENING[name], p, wanted)
    assert t > 1
    assert float(simplex.entropy(simplex.SOFTENING[name](p, t)).mean()) == pytest.approx(wanted, abs=1e-7)
    assert simplex.matched_temperature(simplex.SOFTENING[name], p, 0.0) == 1
    assert simplex.matched_temperature(simplex.SOFTENING[name], p, 100.0) == 1e6


def test_partial_access_keeps_what_it_shows():
    p = points(20)
    shown = simplex.top_k(p, 3)
    torch.testing.assert_close(shown.sum(-1), torch.ones(20, dtype=torch.float64))
    torch.testing.assert_close(shown.topk(3).values, p.topk(3).values)
    rest = shown.scatter(-1, p.topk(3).indices, float("nan"))
    assert torch.allclose(rest.nanmean(-1) * 7, 1 - p.topk(3).values.sum(-1))
    assert torch.equal(simplex.top_k(p, 10), p)
    noisy = simplex.noised(p, 0.1, torch.Generator().manual_seed(0))
    torch.testing.assert_close(noisy.sum(-1), torch.ones(20, dtype=torch.float64))
    assert (noisy >= 0).all()
    torch.testing.assert_close(simplex.noised(p, 0.0, torch.Generator()), p)


def test_temperatures_give_one_linear_predictor_and_other_operators_do_not():
    error, alike = simplex.temperature_equivalence(np.random.default_rng(0))
    assert error < 1e-4
    assert 0.8 < alike <= 1
    x, rng = np.random.default_rng(1).normal(size=(80, 3)), np.random.default_rng(2)
    p = torch.from_numpy(x @ rng.normal(size=(3, 4))).softmax(-1)
    one, mixed = simplex.linear_fit(x, p.numpy()), simplex.linear_fit(x, simplex.uniform_mixing(p, 3.0).numpy())
    assert np.abs(mixed - one / 3).max() > 0.01  # negative control


# --- teachers of teachers ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(simplex.META_TEACHERS))
def test_every_meta_teacher_satisfies_the_axioms(name):
    violations = simplex.meta_violations(simplex.META_TEACHERS[name], points(60), points(60, seed=1))
    assert max(violations.values()) < 1e-12, violations


def test_an_unanchored_operator_is_found():
    def squared(base, students, gamma):
        return simplex.power(simplex.linear_anchor(base, students, gamma), 0.5)

    violations = simplex.meta_violations(squared, points(60), points(60, seed=1))
    assert violations["anchoring"] > 0.01
    swapped = simplex.meta_violations(
        lambda b, s, g: simplex.linear_anchor(b, s, 1 - g), points(60), points(60, seed=1)
    )
    assert swapped["monotone"] > 0.01


@pytest.mark.parametrize("classes", [10, 30])
@pytest.mark.parametrize("gamma", [0.3, 0.6, 0.9])
def test_anchored_recursion_contracts_for_every_pair(classes, gamma):
    base, start = points(1000, classes), points(1000, classes, seed=1)
    for operator in (simplex.linear_anchor, simplex.geometric_anchor):
        student = start
        for _ in range(20):
            before, student = simplex.kl(base, student), operator(base, [student], gamma)
            assert (simplex.kl(base, student) <= gamma * before + 1e-10).all()
        assert (simplex.kl(base, student) <= gamma**20 * simplex.kl(base, start) + 1e-10).all()


def test_geometric_contraction_is_exact_up_to_the_normalisation():
    base, student, gamma = points(1000), points(1000, seed=1), 0.6
    made = simplex.geometric_anchor(base, [student], gamma)
    log_z = (base.log() * (1 - gamma) + student.log() * gamma).logsumexp(-1)
    assert (log_z <= 0).all()
    torch.testing.assert_close(simplex.kl(base, made), gamma * simplex.kl(base, student) + log_z, rtol=0, atol=1e-10)


def test_without_an_anchor_nothing_contracts():
    base, student = points(100), points(100, seed=1)
    torch.testing.assert_close(simplex.linear_anchor(base, [student], 1.0), student)


def test_history_weighs_recent_students_more_and_aggregates_are_means():
    base, students = points(5), [points(5, seed=s) for s in (1, 2)]
    made = simplex.history_anchor(base, students, 0.6)
    torch.testing.assert_close(made, 0.4 * base + 0.6 * (students[0] + 2 * students[1]) / 3)
    torch.testing.assert_close(simplex.linear_mixture(students, [1, 3]), (students[0] + 3 * students[1]) / 4)
    expected = simplex.normalise((students[0] * students[1]).sqrt())
    torch.testing.assert_close(simplex.geometric_mixture(students), expected)
