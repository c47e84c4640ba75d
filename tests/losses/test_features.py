"""Identities and invariances of the feature and relation losses."""

import pytest
import torch

from kdbench.losses.features import (
    batch_gram,
    channel_correlation,
    class_similarity,
    head_gradient,
    hint,
    pairwise_distance,
    relational_angle,
    relational_distance,
    similarity_preserving,
)


def features(b=6, d=5, seed=0):
    return torch.randn(b, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def rotation(d=5):
    return torch.linalg.qr(features(d, d, seed=9)).Q


def test_gram_rows_have_unit_length_whatever_the_shape():
    gram = batch_gram(torch.randn(6, 3, 4, 4))
    assert gram.shape == (6, 6)
    assert (gram.norm(dim=1) - 1).abs().max() < 1e-6


def test_similarity_ignores_rotation_scale_and_width():
    f = features()
    assert similarity_preserving(3 * f @ rotation(), f) < 1e-20
    assert similarity_preserving(torch.cat([f, 0 * f], 1), f) < 1e-20
    assert similarity_preserving(features(seed=1), f) > 1e-4


def test_similarity_of_hand_made_batches():
    # Orthogonal samples against identical ones: G_s = I, G_t = 1/sqrt(2) everywhere.
    a = (1 - 2**-0.5) ** 2 * 2 + 2 * 0.5
    assert similarity_preserving(torch.eye(2), torch.ones(2, 3)).item() == pytest.approx(a / 4)


def test_distances_match_and_have_a_finite_gradient_for_duplicates():
    f = features()
    assert torch.allclose(pairwise_distance(f), torch.cdist(f, f), atol=1e-6)
    twins = torch.ones(4, 3, dtype=torch.float64, requires_grad=True)
    pairwise_distance(twins).sum().backward()
    assert twins.grad.isfinite().all()


@pytest.mark.parametrize("relation", [relational_distance, relational_angle])
def test_relations_ignore_rotation_scale_and_shift(relation):
    f = features()
    assert relation(2.5 * f @ rotation() + 7, f) < 1e-15
    assert relation(features(seed=1), f) > 1e-4


def test_angle_sees_what_distance_sees_and_all_triples():
    right = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    line = torch.tensor([[0.0, 0.0], [1.0, 0.0], [2.0, 0.0]])
    assert relational_angle(right, line) > 0.05


@pytest.mark.parametrize("loss", [similarity_preserving, relational_distance, relational_angle, hint])
def test_no_gradient_reaches_the_teacher(loss):
    s, t = features().requires_grad_(True), features(seed=1).requires_grad_(True)
    loss(s, t).backward()
    assert t.grad is None
    assert s.grad.abs().max() > 0


@pytest.mark.parametrize("relation", [relational_distance, relational_angle, similarity_preserving])
def test_relations_of_one_sample_are_nil_and_have_a_gradient(relation):
    student = torch.randn(1, 5, requires_grad=True)
    loss = relation(student, torch.randn(1, 5))
    loss.backward()
    assert loss.item() == pytest.approx(0.0, abs=1e-6)
    assert student.grad is not None
    assert torch.isfinite(student.grad).all()


def test_head_gradient_is_that_of_autograd_and_is_differentiable():
    penult, y = features(), torch.tensor([0, 1, 2, 0, 1, 2])
    penult.requires_grad_()
    head = torch.nn.Linear(5, 3).double()
    logits = head(penult)
    (expected,) = torch.autograd.grad(torch.nn.functional.cross_entropy(logits, y), head.weight, retain_graph=True)
    made = head_gradient(penult, logits, y)
    assert torch.allclose(made, expected)
    made.square().sum().backward()
    assert penult.grad.abs().sum() > 0


def test_class_similarity_ignores_rotation_scale_and_width():
    rows = features(4)
    assert class_similarity(3 * rows @ rotation(), rows).item() == pytest.approx(0, abs=1e-12)
    assert class_similarity(features(4, 7), rows).item() == pytest.approx(
        (batch_gram(features(4, 7)) - batch_gram(rows)).square().sum().item() / 4
    )


def test_channel_correlation_compares_each_class_by_itself():
    rows = features(4)
    assert channel_correlation(-2 * rows, rows).item() == pytest.approx(0, abs=1e-12)  # the sign of a row is lost
    other = rows.clone()
    other[0] = other[0].roll(1)
    one = channel_correlation(other, rows).item()
    outer = [torch.nn.functional.normalize(torch.outer(r, r), dim=1) for r in (other[0], rows[0])]
    assert one == pytest.approx((outer[0] - outer[1]).square().sum().item() / 20)
    with pytest.raises(ValueError, match="widths 5 and 7"):
        channel_correlation(rows, features(4, 7))
