"""AdaKD: difficulty, selection, temperatures, and the controller of the kept fraction."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kdbench.losses import divergences as d
from kdbench_methods.llm.adakd import Focus, adakd_loss, hardest, temperatures


def logits(*shape: int, seed: int = 0) -> torch.Tensor:
    return 2 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def gradient(function, student):
    student = student.clone().requires_grad_()
    function(student).backward()
    return student.grad


STUDENT, TEACHER = logits(40, 9), logits(40, 9, seed=1)


# --- the loss ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(d.DIVERGENCES))
def test_without_focus_and_temperatures_it_is_the_base_loss(name):
    base = d.divergence(name)
    value, what = adakd_loss(STUDENT, TEACHER, base, r=1.0, c=0.0)
    assert torch.equal(value, base(STUDENT, TEACHER).mean())
    assert what["kept"].all()
    plain = gradient(lambda z: base(z, TEACHER).mean(), STUDENT)
    assert torch.equal(gradient(lambda z: adakd_loss(z, TEACHER, base, r=1.0, c=0.0)[0], STUDENT), plain)


@pytest.mark.parametrize("base", [d.rkl, d.fkl, d.jsd, d.srkl])
def test_the_loss_is_the_mean_over_kept_tokens_with_the_square_of_each_temperature(base):
    value, what = adakd_loss(STUDENT, TEACHER, base, r=0.25, c=0.5)
    kept = what["kept"].nonzero()[:, 0].tolist()
    assert len(kept) == 10
    each = [
        tau**2 * base(STUDENT[i] / tau, TEACHER[i] / tau).item()
        for i, tau in zip(kept, what["tau"].tolist(), strict=True)
    ]
    assert value.item() == pytest.approx(sum(each) / len(each))


def test_dropped_tokens_get_no_gradient():
    student = STUDENT.clone().requires_grad_()
    value, what = adakd_loss(student, TEACHER, d.rkl, r=0.25)
    value.backward()
    moved = student.grad.abs().sum(-1) > 0
    assert torch.equal(moved, what["kept"])


def test_difficulty_is_measured_at_temperature_one_whatever_tau0_is():
    _, warm = adakd_loss(STUDENT, TEACHER, d.rkl, r=0.5, tau0=5.0)
    _, cold = adakd_loss(STUDENT, TEACHER, d.rkl, r=0.5, tau0=0.2)
    assert torch.equal(warm["kept"], cold["kept"])
    assert torch.equal(warm["difficulty"], d.hellinger(STUDENT, TEACHER)[warm["kept"]])


def test_temperatures_are_constants_unless_asked_for():
    def loss(z, detach):
        return adakd_loss(z, TEACHER, d.rkl, detach=detach)[0]

    constant = gradient(lambda z: loss(z, True), STUDENT)
    _, what = adakd_loss(STUDENT, TEACHER, d.rkl)
    by_hand = gradient(lambda z: d.rkl(z, TEACHER, temperature=what["tau"]).mean(), STUDENT)
    assert torch.allclose(constant, by_hand)
    through = gradient(lambda z: loss(z, False), STUDENT)
    assert through.isfinite().all()
    assert not torch.allclose(through, constant)


def test_random_focus_keeps_as_many_tokens_but_not_the_hardest():
    generator = torch.Generator().manual_seed(0)
    _, chance = adakd_loss(STUDENT, TEACHER, d.rkl, r=0.25, focus="random", generator=generator)
    _, hard = adakd_loss(STUDENT, TEACHER, d.rkl, r=0.25)
    assert chance["kept"].sum() == hard["kept"].sum() == 10
    assert chance["difficulty"].mean() < hard["difficulty"].mean()
    _, everything = adakd_loss(STUDENT, TEACHER, d.rkl, r=0.25, focus="all")
    assert everything["kept"].all()


# --- selection and temperatures ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("r", "count"), [(1.0, 7), (0.5, 4), (0.1, 1), (1e-9, 1)])
def test_the_hardest_fraction_is_kept_and_never_nothing(r, count):
    s = torch.tensor([0.3, 0.9, 0.1, 0.7, 0.2, 0.8, 0.4])
    kept = hardest(s, r)
    assert kept.sum() == count
    assert count == 7 or s[kept].min() > s[~kept].max()


@settings(max_examples=50, deadline=None)
@given(
    s=st.lists(st.floats(0, 1), min_size=1, max_size=40),
    c=st.floats(0, 3),
    tau0=st.floats(0.1, 5),
)
def test_temperature_falls_with_difficulty_within_its_bounds(s, c, tau0):
    difficulty = torch.tensor(s, dtype=torch.float64)
    tau = temperatures(difficulty, tau0, c)
    assert ((tau >= tau0 * math.exp(-c) - 1e-9) & (tau <= tau0 * math.exp(c) + 1e-9)).all()
    assert (tau[difficulty.argsort()].diff() <= 1e-9).all()
    assert torch.allclose(temperatures(difficulty, tau0, -c), tau0**2 / tau)  # the reversed sign


def test_the_median_token_has_tau0():
    s = torch.tensor([0.1, 0.5, 0.9])
    assert temperatures(s, 2.0, 0.5)[1].item() == pytest.approx(2.0)


def test_the_median_is_that_of_the_kept_tokens():
    _, what = adakd_loss(STUDENT, TEACHER, d.rkl, r=0.5)
    middle = what["difficulty"].median()
    assert what["tau"][what["difficulty"] == middle].item() == pytest.approx(1.0)


def test_equal_distributions_have_finite_temperatures():
    value, what = adakd_loss(TEACHER, TEACHER, d.rkl)
    assert value.item() == pytest.approx(0, abs=1e-9)
    assert what["tau"].isfinite().all()


# --- the controller ---------------------------------------------------------------------------------------------------


def focus(**changes):
    return Focus(**({"eps": 0.05, "sigma": 0.1, "floor": 0.1, "decay": 0.0, "warmup_steps": 2} | changes))


def feed(controller, losses, start=1):
    path = []
    for step, loss in enumerate(losses, start):
        controller.update(step, loss)
        path.append(controller.r)
    return path


def test_nothing_moves_during_warm_up_nor_within_the_band():
    controller = focus()
    assert feed(controller, [10, 1]) == [1, 1]
    assert controller.reference is None
    assert feed(controller, [1, 1.04, 0.96, 1.04], start=3) == [1, 1, 1, 1]
    assert controller.reference == 1


def test_falling_losses_narrow_the_focus_and_rising_ones_widen_it_and_each_move_resets_the_reference():
    controller = focus()
    feed(controller, [1, 1, 1])
    assert feed(controller, [0.9], start=4) == [0.9]
    assert controller.reference == pytest.approx(0.9)
    assert feed(controller, [0.87], start=5) == [0.9]  # 13 % below the first reference, 3 % below the current one
    assert feed(controller, [0.8], start=6) == pytest.approx([0.81])
    assert feed(controller, [0.9], start=7) == pytest.approx([0.891])
    assert controller.reference == pytest.approx(0.9)


def test_the_fraction_stays_between_its_floor_and_one():
    controller = focus()
    feed(controller, [1, 1, 1])
    assert min(feed(controller, [0.9**i for i in range(1, 60)], start=4)) == 0.1
    assert max(feed(controller, [1.2**i for i in range(60)], start=70)) == 1.0


def test_the_average_smooths_single_outliers():
    controller = focus(decay=0.99)
    feed(controller, [1, 1, 1])
    assert feed(controller, [0.5], start=4) == [1.0]
    assert controller.average == pytest.approx(0.995)
