"""Subclasses in embeddings: what the classifier does not see, planted directions, and classes of few rows."""

import numpy as np
import pytest
import torch

from kdbench.errors import UsageError
from kdbench.training.subclasses import fit_clusters, fit_directions, mean_nmi, null_space, random_axes

C, D = 3, 10


def planted(n=60, seed=0):
    """Embeddings of which class c varies most along one axis; weights (C, D) that read the first three axes."""
    g = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % C
    weight = torch.zeros(C, D)
    weight[:, :C] = torch.eye(C)
    h = 0.1 * torch.randn(n, D, generator=g)
    h[:, 0] += 20 * torch.randn(n, generator=g)  # the largest direction of all, but the classifier sees it
    side = torch.randint(2, (n,), generator=g) * 2 - 1
    h[torch.arange(n), 4 + labels] += 2 * side
    return h, labels, weight, side


def orthonormal(columns):
    torch.testing.assert_close(columns.T @ columns, torch.eye(columns.shape[1], dtype=columns.dtype))


@pytest.mark.parametrize(
    "weight", [np.eye(2, 5), np.ones((3, 5)), np.zeros((2, 5)), np.random.default_rng(0).random((7, 5))]
)
def test_the_null_space_is_all_that_the_weights_do_not_see(weight):
    basis = null_space(weight)
    assert basis.shape == (5, 5 - np.linalg.matrix_rank(weight))
    assert np.abs(weight @ basis).max(initial=0) < 1e-12
    orthonormal(torch.from_numpy(basis))


@pytest.mark.parametrize("rotate", [None, 0])
@pytest.mark.parametrize("random", [False, True])
def test_directions_are_invisible_to_the_classifier_and_have_unit_variance(rotate, random):
    h, y, weight, _ = planted()
    options = {"rotate": None if rotate is None else np.random.default_rng(rotate)}
    if random:
        options["axes"] = random_axes(null_space(weight.double().numpy()), np.random.default_rng(1))
    found = fit_directions(h, y, weight, 4, **options)
    assert torch.einsum("ed,cdk->eck", weight.double(), found.basis).abs().max() < 1e-9
    u = found.coordinates(h)
    for c in range(C):
        own = u[y == c, c]
        torch.testing.assert_close(own.mean(0), torch.zeros(4, dtype=torch.float64), atol=1e-9, rtol=0)
        torch.testing.assert_close(own.std(0, unbiased=False), torch.ones(4, dtype=torch.float64))
    scores = found.scores(h)
    assert scores.shape == (60, C, 8)
    torch.testing.assert_close(scores[..., :4], -scores[..., 4:])


def test_each_class_finds_its_own_planted_direction():
    h, y, weight, side = planted()
    found = fit_directions(h, y, weight, 1)
    u = found.coordinates(h)[torch.arange(60), y, 0]
    for c in range(C):
        assert abs(((u > 0) == (side > 0))[y == c].double().mean() - 0.5) == 0.5
    assert (found.explained > 0.9).all()
    far = random_axes(null_space(weight.double().numpy()), np.random.default_rng(0))
    assert (fit_directions(h, y, weight, 1, axes=far).explained < found.explained).all()


def test_a_rotation_keeps_the_span_and_shares_the_variance():
    h, y, weight, _ = planted()
    plain, turned = fit_directions(h, y, weight, 3), fit_directions(h, y, weight, 3, rotate=np.random.default_rng(0))
    torch.testing.assert_close(plain.explained, turned.explained)
    for c in range(C):
        joined = torch.cat([plain.basis[c], turned.basis[c]], dim=1)
        assert torch.linalg.matrix_rank(joined, rtol=1e-6) == 3
    assert not torch.allclose(plain.basis, turned.basis)


def test_what_is_not_in_the_training_data_does_not_move_the_directions():
    h, y, weight, _ = planted()
    alone = fit_directions(h[:40], y[:40], weight, 2)
    torch.testing.assert_close(alone.mean[1], h[:40][y[:40] == 1].double().mean(0))
    assert not torch.allclose(alone.basis, fit_directions(h, y, weight, 2).basis)


def test_a_class_of_few_rows_has_no_more_directions_than_they_span():
    h, y, weight, _ = planted()
    kept = torch.cat([(y == 0).nonzero().flatten(), (y == 1).nonzero().flatten()[:3], (y == 2).nonzero().flatten()[:1]])
    found = fit_directions(h[kept], y[kept], weight, 4, rotate=np.random.default_rng(0))
    assert found.basis.abs().amax(1).gt(0).sum(1).tolist() == [4, 2, 0]
    u = found.coordinates(h)
    assert torch.isfinite(u).all()
    assert (u[:, 2] == 0).all()
    nobody = fit_directions(h[y != 1], y[y != 1], weight, 2)
    assert (nobody.coordinates(h)[:, 1] == 0).all()


def test_more_directions_than_the_classifier_leaves_are_refused():
    h, y, weight, _ = planted()
    fit_directions(h, y, weight, D - C)
    with pytest.raises(UsageError, match="have only 7"):
        fit_directions(h, y, weight, D - C + 1)


def test_clusters_find_the_planted_sides_and_do_not_see_what_the_classifier_sees():
    h, y, weight, side = planted()
    found = fit_clusters(h, y, weight, 2, seed=0)
    own = found.scores(h)[torch.arange(60), y].argmax(-1)
    for c in range(C):
        assert abs(((own == 1) == (side > 0))[y == c].double().mean() - 0.5) == 0.5
    moved = h.clone()
    moved[:, :C] += 7
    torch.testing.assert_close(found.scores(moved), found.scores(h))


def test_clusters_of_few_rows():
    h, y, weight, _ = planted()
    kept = torch.cat([(y == 0).nonzero().flatten(), (y == 1).nonzero().flatten()[:2]])
    probs = fit_clusters(h[kept], y[kept], weight, 4, seed=0).scores(h).softmax(-1)
    assert torch.isfinite(probs).all()
    assert (probs[:, 1, 2:] == 0).all()  # a cluster per row
    assert (probs[:, 2, 0] == 1).all()  # no rows at all


def test_a_direction_is_seen_where_it_leaves_the_null_space():
    h, labels, weight, _ = planted()
    found = fit_directions(h, labels, weight, 2)
    assert found.seen_by(weight) < 1e-9
    along = torch.zeros(1, D)
    along[0] = found.basis[1, :, 0]
    assert found.seen_by(along) == pytest.approx(1.0)


def test_mutual_information_is_measured_within_classes():
    labels, topics = np.array([0, 0, 0, 0, 1, 1, 1, 1]), np.array(list("ababaabb"))
    assert mean_nmi(np.array([0, 1, 0, 1, 5, 5, 2, 2]), topics, labels) == pytest.approx(1.0)
    assert mean_nmi(np.array([0, 1, 0, 1, 3, 3, 3, 3]), topics, labels) == pytest.approx(0.5)
    assert mean_nmi(labels, topics, labels) == pytest.approx(0.0)  # the class alone says nothing of the topic
