"""Selection of samples: the game's closed form against linear programming, and properties of the strategies."""

import numpy as np
import pytest
import torch
from scipy.optimize import linprog

from kdbench.training.selection import (
    draw,
    entropy,
    k_center,
    margin_informativeness,
    per_class,
    robust_distribution,
    top,
)


def game_by_linear_programming(g, right):
    """max_p min over S of size ``right`` of sum_S p g, as a linear program over (p, u, v).

    The inner minimum is the sum of the ``right`` smallest values; its dual is right * u - sum v with
    u - v_i <= p_i g_i and v >= 0.
    """
    n = len(g)
    cost = np.concatenate([np.zeros(n), [-right], np.ones(n)])
    below = np.hstack([-np.diag(g), np.ones((n, 1)), -np.eye(n)])
    total = np.concatenate([np.ones(n), np.zeros(n + 1)])[None]
    bounds = [(0, None)] * n + [(None, None)] + [(0, None)] * n
    solution = linprog(cost, A_ub=below, b_ub=np.zeros(n), A_eq=total, b_eq=[1.0], bounds=bounds)
    assert solution.success
    return -solution.fun


@pytest.mark.parametrize("n", range(2, 9))
def test_closed_form_is_the_optimum_of_the_linear_program(n):
    rng = np.random.default_rng(n)
    for _ in range(6):
        g = rng.uniform(0.01, 1, n)
        for wrong in range(n):
            p, value = robust_distribution(torch.from_numpy(g), wrong)
            assert value == pytest.approx(game_by_linear_programming(g, n - wrong), abs=1e-7)
            # and p attains it: the worst n - wrong points
            assert float((p * torch.from_numpy(g)).sort().values[: n - wrong].sum()) == pytest.approx(value, abs=1e-12)
            assert float(p.sum()) == pytest.approx(1.0)


def test_weights_are_inverse_to_informativeness_inside_the_support():
    g = torch.tensor([0.9, 0.5, 0.8, 0.01, 0.6])
    p, _ = robust_distribution(g, 1)
    support = p > 0
    assert 1 < int(support.sum()) < len(g)
    assert torch.allclose((p * g.double())[support], (p * g.double())[support][0].expand(int(support.sum())), rtol=1e-6)
    assert g[support].min() > g[~support].max()


def test_support_when_the_teacher_is_never_wrong():
    # m = n: k maximises k / H_k, the harmonic mean of the k largest, which is largest for k = 1.
    p, value = robust_distribution(torch.tensor([0.2, 0.9, 0.5]), 0)
    assert p.tolist() == [0.0, 1.0, 0.0]
    assert value == pytest.approx(0.9)


def test_equal_informativeness_gives_the_uniform_distribution():
    for wrong in (0, 2, 4):
        p, value = robust_distribution(torch.full((5,), 0.3), wrong)
        assert torch.allclose(p, torch.full((5,), 0.2, dtype=torch.float64))
        assert value == pytest.approx(0.3 * (5 - wrong) / 5, rel=1e-6)


def test_more_wrong_labels_widen_the_support():
    g = torch.rand(40, generator=torch.Generator().manual_seed(0))
    sizes = [int((robust_distribution(g, wrong)[0] > 0).sum()) for wrong in range(0, 40, 4)]
    assert sizes == sorted(sizes)
    assert all(size > wrong for size, wrong in zip(sizes, range(0, 40, 4), strict=True))


@pytest.mark.parametrize("wrong", [-1, 3])
def test_impossible_numbers_of_wrong_labels_are_refused(wrong):
    with pytest.raises(ValueError, match="between 0 and 2"):
        robust_distribution(torch.ones(3), wrong)


def test_points_without_interest_do_not_break_the_game():
    p, value = robust_distribution(torch.tensor([0.0, 1.0, 0.0, 0.5]), 1)
    assert p.isfinite().all()
    assert p.sum() == pytest.approx(1.0)
    assert value >= 0


def test_scores_of_certain_and_uniform_predictions():
    probs = torch.tensor([[1.0, 0.0, 0.0], [1 / 3, 1 / 3, 1 / 3], [0.6, 0.4, 0.0]])
    assert margin_informativeness(probs).tolist() == pytest.approx([0.0, 1.0, 0.8])
    assert entropy(probs).tolist() == pytest.approx([0.0, np.log(3), -0.6 * np.log(0.6) - 0.4 * np.log(0.4)])


def test_top_is_stable():
    assert top(torch.tensor([1.0, 3.0, 3.0, 2.0]), 3).tolist() == [1, 2, 3]


def test_draw_has_no_duplicates_and_keeps_to_the_support_while_it_lasts():
    weights = torch.tensor([0.0, 0.2, 0.0, 0.8, 0.0])
    generator = torch.Generator().manual_seed(0)
    assert sorted(draw(weights, 2, generator).tolist()) == [1, 3]
    four = draw(weights, 4, generator).tolist()
    assert len(set(four)) == 4
    assert {1, 3} <= set(four)
    assert len(set(draw(torch.zeros(5), 3, generator).tolist())) == 3


def test_draw_follows_the_weights():
    generator = torch.Generator().manual_seed(0)
    first = [int(draw(torch.tensor([0.1, 0.9]), 1, generator)) for _ in range(400)]
    assert 0.84 < np.mean(first) < 0.96


def test_k_center_covers_clusters_and_never_repeats():
    centers = torch.tensor([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0], [10.0, 10.0]])
    points = centers.repeat(5, 1) + 0.1 * torch.randn(20, 2, generator=torch.Generator().manual_seed(0))
    chosen = k_center(points, centers[:1], 3)
    assert sorted((chosen % 4).tolist()) == [1, 2, 3]
    assert len(set(k_center(torch.zeros(6, 2), torch.empty(0, 2), 6).tolist())) == 6


def test_per_class_keeps_the_shares():
    labels = torch.tensor([0] * 40 + [1] * 20 + [2] * 3 + [-1] * 10)
    kept = per_class(labels, 0.25, torch.Generator().manual_seed(0))
    assert [int((labels[kept] == c).sum()) for c in (0, 1, 2, -1)] == [10, 5, 1, 2]
    assert len(set(kept.tolist())) == len(kept)
    assert per_class(labels, 1.0, torch.Generator()).tolist() == list(range(len(labels)))
