"""Contrastive losses: limits, invariances, and their definitions written out."""

import math

import pytest
import torch
import torch.nn.functional as F

from kdbench.losses.contrastive import cosines, info_nce, nt_xent


def pair(n=7, d=5, seed=0, **options):
    g = torch.Generator().manual_seed(seed)
    return torch.randn(2, n, d, generator=g, **options)


def test_info_nce_is_its_definition():
    query, key = pair(dtype=torch.float64)
    total = 0.0
    for i, q in enumerate(query):
        weights = [math.exp(float(F.cosine_similarity(q, k, dim=0)) / 0.3) for k in key]
        total -= math.log(weights[i] / sum(weights))
    assert info_nce(query, key, 0.3).item() == pytest.approx(total / 7, rel=1e-12)


def test_rows_that_are_all_alike_cost_log_b():
    assert info_nce(torch.ones(6, 3), torch.ones(6, 3), 0.1).item() == pytest.approx(math.log(6), rel=1e-6)


def test_orthogonal_pairs_cost_nothing_at_a_low_temperature():
    rows = torch.eye(6)
    assert info_nce(rows, rows, 0.05).item() < 1e-6
    assert info_nce(rows, rows.roll(1, 0), 0.05).item() == pytest.approx(20, rel=1e-3)


def test_scale_of_features_does_not_matter():
    a, b = pair()
    assert info_nce(5 * a, 0.1 * b).item() == pytest.approx(info_nce(a, b).item(), rel=1e-5)
    assert nt_xent(5 * a, 0.1 * b).item() == pytest.approx(nt_xent(a, b).item(), rel=1e-5)


def test_nt_xent_is_its_definition_and_symmetric():
    a, b = pair(4, 3, dtype=torch.float64)
    views, total = torch.cat([a, b]), 0.0
    for i in range(8):
        weights = {j: math.exp(float(F.cosine_similarity(views[i], views[j], dim=0)) / 0.5) for j in range(8) if j != i}
        total -= math.log(weights[(i + 4) % 8] / sum(weights.values()))
    assert nt_xent(a, b, 0.5).item() == pytest.approx(total / 8, rel=1e-12)
    assert nt_xent(b, a, 0.5).item() == pytest.approx(nt_xent(a, b, 0.5).item(), rel=1e-12)


def test_one_sample_has_no_negative():
    a, b = pair(1)
    assert info_nce(a, b).item() == 0.0
    assert nt_xent(a, b).item() == 0.0


def test_float32_and_gradients_on_both_sides():
    a, b = pair()
    a, b = a.half().requires_grad_(), b.half().requires_grad_()
    for loss in (info_nce, nt_xent):
        value = loss(a, b)
        assert value.dtype == torch.float32
        value.backward()
        assert a.grad.abs().sum() > 0
        assert b.grad.abs().sum() > 0
        a.grad = b.grad = None
    assert cosines(torch.zeros(2, 3), torch.ones(2, 3)).abs().sum() == 0
