"""Layer maps and the losses between layers."""

from __future__ import annotations

import math

import pytest
import torch

from kdbench.losses.information import mi_alpha
from kdbench.training.intermediate import LayerMatch, compare, layer_pairs, transport_weights


def features(states: int, rows: int = 6, width: int = 5, seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(rows, width, generator=generator) for _ in range(states)]


def test_which_layers_are_compared():
    assert layer_pairs("last", 2, 5) == [(1, 4)]
    assert layer_pairs("uniform", 3, 5) == [(0, 0), (1, 2), (2, 4)]
    assert layer_pairs("uniform", 1, 5) == [(0, 0)]
    assert len(layer_pairs("transport", 3, 5)) == 15


def test_normalised_distance_is_twice_the_cosine_distance():
    student, teacher = features(2)
    assert compare("l2_mse", student, teacher).item() == pytest.approx(2 * compare("cosine", student, teacher).item())
    assert compare("l2_mse", 3 * student, teacher).item() == pytest.approx(compare("l2_mse", student, teacher).item())
    assert compare("mse", student, student).item() == 0


def test_the_plan_gives_each_layer_its_mass_and_prefers_cheap_pairs():
    cost = torch.tensor([[0.0, 5.0, 5.0, 5.0], [5.0, 5.0, 5.0, 0.0]])
    plan = transport_weights(cost, iterations=200)
    torch.testing.assert_close(plan.sum(0), torch.full((4,), 0.25))
    torch.testing.assert_close(plan.sum(1), torch.full((2,), 0.5), atol=1e-3, rtol=0)
    assert plan[0, 0] > 0.2 < plan[1, 3]
    torch.testing.assert_close(transport_weights(2 * cost - 7, iterations=200), plan)
    torch.testing.assert_close(transport_weights(torch.zeros(2, 4)), torch.full((2, 4), 1 / 8))


@pytest.mark.parametrize("layers", ["last", "uniform", "transport"])
@pytest.mark.parametrize("kind", ["mse", "l2_mse", "cosine", "infonce", "mi"])
def test_student_and_projections_learn_and_the_teacher_does_not(kind, layers):
    torch.manual_seed(0)
    match = LayerMatch(kind, layers, (2, 5), (4, 7), alpha=0.5)
    student = [each.requires_grad_() for each in features(2)]
    teacher = [each.requires_grad_() for each in features(4, width=7, seed=1)]
    match(student, teacher).backward()
    assert all(parameter.grad is not None for parameter in match.parameters())
    assert student[-1].grad.abs().sum() > 0
    assert all(each.grad is None for each in teacher)


def test_mi_at_one_is_info_nce_and_at_most_log_k():
    losses = []
    for kind in ("infonce", "mi"):
        torch.manual_seed(0)
        match = LayerMatch(kind, "last", (2, 5), (2, 5), alpha=1.0)
        losses.append(match(features(2), features(2, seed=1)).item())
    assert losses[0] == losses[1]
    assert -losses[0] <= math.log(6)
    assert LayerMatch("infonce", "last", (2, 5), (2, 5), alpha=0.1).alpha == 1.0


def test_the_critic_is_the_cosine_of_the_projections():
    torch.manual_seed(0)
    match = LayerMatch("infonce", "last", (1, 5), (1, 7), temperature=0.2)
    student, teacher = features(1)[0], features(1, width=7, seed=1)[0]
    ours, theirs = match.ours["0"](student), match.theirs["0"](teacher)
    scores = torch.stack([torch.cosine_similarity(t[None], ours) for t in theirs]) / 0.2
    assert match([student], [teacher]).item() == pytest.approx(-mi_alpha(scores).item(), abs=1e-6)


def test_one_row_says_nothing_about_information():
    match = LayerMatch("mi", "uniform", (2, 5), (3, 7), alpha=0.1)
    loss = match(features(2, rows=1), features(3, rows=1, width=7))
    assert loss.item() == 0
    loss.backward()
