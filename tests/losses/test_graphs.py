"""Token graphs: their definition, what they do not see, and distances that vanish for equal features."""

import pytest
import torch
import torch.nn.functional as F

from kdbench.losses.graphs import (
    context,
    contextual,
    gather_tokens,
    knn_graph,
    local_preserving,
    nearest,
    neighbour_overlap,
)


def tokens(m=12, d=5, seed=0):
    return torch.randn(m, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_equal_features_have_no_distance_at_all():
    images = tokens(12).view(3, 4, 5)
    assert contextual(images, images).item() == 0.0
    around = nearest(tokens(), 3)
    graphs = knn_graph(tokens(), around), knn_graph(tokens(), around)
    for reverse in (False, True):
        assert local_preserving(*graphs, reverse=reverse).item() == 0.0
    assert neighbour_overlap(tokens(), tokens(), 3) == 1.0


def test_context_is_attention_without_projections():
    images = tokens(12).view(3, 4, 5)
    expected = F.scaled_dot_product_attention(images, images, torch.eye(4, dtype=torch.float64).expand(3, 4, 4))
    torch.testing.assert_close(context(images), expected)


def test_the_graph_is_its_definition():
    rows, k, sigma = tokens(9), 3, 0.7
    graph = knn_graph(rows, nearest(rows, k), sigma)
    for i in range(9):
        squared = (rows - rows[i]).square().sum(1)
        around = [j for j in squared.argsort().tolist() if j != i][:k]
        for j in range(9):
            expected = torch.exp(-squared[j] / (2 * sigma)).item() if j in around else 0.0
            assert graph[i, j].item() == pytest.approx(expected, abs=1e-12)


def test_the_graph_with_the_median_width_does_not_see_the_scale():
    rows, around = tokens(), nearest(tokens(), 4)
    torch.testing.assert_close(knn_graph(7 * rows, around), knn_graph(rows, around))
    free = rows.clone().requires_grad_()
    knn_graph(free, around).square().sum().backward()
    assert free.grad.abs().max() > 1e-3
    assert (free.grad * rows).sum().abs() < 1e-9  # nothing pulls along the scale
    assert not torch.allclose(knn_graph(7 * rows, around, 1.0), knn_graph(rows, around, 1.0))


def test_neighbours_are_others_and_may_be_all_of_them():
    around = nearest(tokens(6), 99)
    assert around.shape == (6, 5)
    assert not (around == torch.arange(6)[:, None]).any()
    assert nearest(tokens(1), 4).shape == (1, 0)
    assert knn_graph(tokens(1), nearest(tokens(1), 4)).item() == 0.0
    assert neighbour_overlap(tokens(1), tokens(1), 4) == 1.0


def test_equal_tokens_stay_finite():
    rows = torch.ones(5, 3, requires_grad=True)
    graph = knn_graph(rows, nearest(rows, 2))
    graph.sum().backward()
    assert torch.isfinite(graph).all()
    assert torch.isfinite(rows.grad).all()


def test_the_direction_of_the_divergence():
    student, teacher = knn_graph(tokens(), nearest(tokens(), 3)), knn_graph(tokens(seed=1), nearest(tokens(), 3))
    p, q = F.softmax(teacher, 1), F.softmax(student, 1)
    forward, backward = (p * (p / q).log()).sum(1).mean(), (q * (q / p).log()).sum(1).mean()
    assert local_preserving(student, teacher).item() == pytest.approx(forward.item(), rel=1e-9)
    assert local_preserving(student, teacher, reverse=True).item() == pytest.approx(backward.item(), rel=1e-9)
    assert forward.item() != pytest.approx(backward.item(), rel=1e-6)


def test_the_teacher_gets_no_gradient():
    student, teacher = tokens().requires_grad_(), tokens(seed=1).requires_grad_()
    around = nearest(teacher, 3)
    loss = local_preserving(knn_graph(student, around), knn_graph(teacher, around))
    loss = loss + contextual(student.view(3, 4, 5), teacher.view(3, 4, 5))
    loss.backward()
    assert student.grad.abs().sum() > 0
    assert teacher.grad is None


def test_gathered_tokens_are_those_at_the_positions():
    images = tokens(12).view(3, 4, 5)
    got = gather_tokens(images, torch.tensor([[3, 0], [1, 2], [0, 0]]))
    expected = [images[0, 3], images[0, 0], images[1, 1], images[1, 2], images[2, 0], images[2, 0]]
    assert torch.equal(got, torch.stack(expected))


def test_overlap_counts_shared_neighbours():
    line = torch.arange(6.0)[:, None]
    assert neighbour_overlap(line, 3 * line + 1, 2) == 1.0
    pairs = torch.tensor([0.0, 100, 1, 101, 200, 201])[:, None]  # pairs (0, 2), (1, 3), (4, 5)
    other = torch.tensor([0.0, 1, 100, 101, 200, 201])[:, None]  # pairs (0, 1), (2, 3), (4, 5)
    assert neighbour_overlap(pairs, other, 1) == pytest.approx(2 / 6)
