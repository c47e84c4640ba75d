"""TAID: the intermediate target, its gradient, and the schedule of the interpolation."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from kdbench.losses import divergences as d
from kdbench_methods.llm.taid import Interpolation, head_and_tail, interpolate, taid_loss


def logits(*shape: int, seed: int = 0) -> torch.Tensor:
    return 2 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def gradient(loss, student, *rest):
    student = student.clone().requires_grad_()
    loss(student, *rest).sum().backward()
    return student.grad


def test_at_one_it_is_forward_kl_towards_the_teacher():
    student, teacher = logits(5, 9), logits(5, 9, seed=1)
    assert torch.equal(taid_loss(student, teacher, 1), d.ce_soft(student, teacher))
    assert torch.equal(d.fkl(student, interpolate(student, teacher, 1)), d.fkl(student, teacher))
    assert torch.allclose(gradient(taid_loss, student, teacher, 1), gradient(d.fkl, student, teacher))


def test_at_zero_there_is_nothing_to_learn():
    student, teacher = logits(5, 9), logits(5, 9, seed=1)
    assert gradient(taid_loss, student, teacher, 0).abs().max() < 1e-12
    assert torch.allclose(taid_loss(student, teacher, 0), d.entropy(d.log_softmax(student)))


@pytest.mark.parametrize("t", [0.1, 0.5, 0.9])
def test_the_target_is_a_constant_of_the_gradient(t):
    """q - p_t: a gradient that also went through the target would differ."""
    student, teacher = logits(5, 9), logits(5, 9, seed=1)
    target = ((1 - t) * student + t * teacher).softmax(-1)
    assert torch.allclose(interpolate(student, teacher, t).softmax(-1), target)
    assert torch.allclose(gradient(taid_loss, student, teacher, t), student.softmax(-1) - target)


def test_the_target_is_the_normalised_geometric_mean():
    student, teacher = logits(5, 9), logits(5, 9, seed=1)
    mean = student.softmax(-1) ** 0.7 * teacher.softmax(-1) ** 0.3
    assert torch.allclose(interpolate(student, teacher, 0.3).softmax(-1), mean / mean.sum(-1, keepdim=True))


def test_impossible_tokens_stay_impossible_and_harmless():
    student, teacher = logits(2, 4), logits(2, 4, seed=1)
    teacher[:, 3] = -math.inf
    for t in (0, 0.4, 1):
        assert gradient(taid_loss, student, teacher, t).isfinite().all()
        assert taid_loss(student, teacher, t).isfinite().all()
    assert (interpolate(student, teacher, 0.4).softmax(-1)[:, 3] == 0).all()


# --- schedule ---------------------------------------------------------------------------------------------------------


def run(losses, **changes):
    options = {"t_start": 0.2, "t_end": 1.0, "alpha": 5e-3, "beta": 0.99} | changes
    schedule = Interpolation(len(losses), **options)
    path = [schedule.t]
    for step, loss in enumerate(losses, 1):
        schedule.update(step, loss)
        path.append(schedule.t)
    return schedule, path


LOSSES = {
    "falling": [5 * 0.99**i for i in range(200)],
    "rising": [1 + 0.01 * i for i in range(200)],
    "noisy": (2 + torch.randn(200, generator=torch.Generator().manual_seed(0))).abs().tolist(),
    "zero": [0.0] * 200,
}


@pytest.mark.parametrize("losses", LOSSES.values(), ids=LOSSES)
def test_t_never_falls_nor_lags_behind_the_linear_schedule_and_ends_at_its_end(losses):
    schedule, path = run(losses, alpha=0.05)
    assert path[0] == 0.2
    assert all(later >= earlier for earlier, later in itertools.pairwise(path))
    assert all(t >= schedule.linear(step) for step, t in enumerate(path))
    assert path[-1] == 1.0


def test_t_runs_ahead_of_the_linear_schedule_and_faster_the_faster_the_loss_falls():
    schedule, falling = run(LOSSES["falling"], alpha=0.05, beta=0.5)
    _, rising = run([5 * 1.5**i for i in range(200)], alpha=0.05, beta=0.5)
    assert falling[50] > schedule.linear(50)
    assert falling[50] > rising[50]


def test_without_the_adaptive_part_t_is_linear():
    for changes in ({"adaptive": False, "alpha": 0.5}, {"alpha": 0.0}):
        schedule, path = run(LOSSES["noisy"], **changes)
        assert path == pytest.approx([schedule.linear(step) for step in range(201)])


def test_one_update_by_hand():
    schedule = Interpolation(100, t_start=0.4, t_end=1.0, alpha=0.5, beta=0.9)
    schedule.update(1, 2.0)  # only stores the loss
    assert schedule.t == pytest.approx(0.406)
    assert schedule.momentum == 0
    schedule.update(2, 1.0)
    assert schedule.momentum == pytest.approx(0.1 * 0.5)
    assert schedule.t == pytest.approx(0.406 + 0.5 * (1 - 0.406) / (1 + math.exp(-0.05)))


def test_t_stays_at_its_end():
    _, path = run(LOSSES["falling"], t_end=0.7, alpha=1.0)
    assert max(path) == path[-1] == 0.7


def test_the_schedule_holds_numbers_not_graphs():
    schedule, _ = run(LOSSES["noisy"])
    assert all(not torch.is_tensor(value) for value in vars(schedule).values())


# --- head and tail ----------------------------------------------------------------------------------------------------


def test_head_and_tail_of_known_distributions():
    head, tail = head_and_tail(torch.zeros(1, 100))
    assert head.item() == pytest.approx(0.1)
    assert tail.item() == pytest.approx(0.2)
    certain = torch.zeros(1, 100)
    certain[0, 0] = 50
    head, tail = head_and_tail(certain)
    assert head.item() == pytest.approx(1)
    assert tail.item() == pytest.approx(0)
