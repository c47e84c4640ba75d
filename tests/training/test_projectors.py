"""Projectors: shapes, what the last layer lets through, and the way between tokens and maps."""

import pytest
import torch

from kdbench.training.projectors import as_map, projector, resize, split_grid


def features(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("kind", "shape", "expected"),
    [("linear", (4, 9, 6), (4, 9, 3)), ("mlp", (4, 6), (4, 3)), ("conv", (4, 6, 5, 5), (4, 3, 5, 5))],
)
def test_projectors_change_the_width_alone_and_learn(kind, shape, expected):
    network = projector(kind, 6, 3)
    out = network(features(*shape))
    assert out.shape == expected
    out.square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())


def test_a_linear_projector_is_linear_and_an_mlp_is_not():
    a, b = features(2, 8, 6)
    for kind, linear in (("linear", True), ("mlp", False)):
        torch.manual_seed(0)
        network = projector(kind, 6, 3)
        middle = network((a + b) / 2)
        assert torch.allclose(middle, (network(a) + network(b)) / 2, atol=1e-5) is linear


def test_the_relu_is_optional_and_the_normalisation_is_not():
    x = 3 + 5 * features(64, 6, 4, 4)
    signed, rectified = projector("conv", 6, 3)(x), projector("conv", 6, 3, relu=True)(x)
    assert signed.min() < 0
    assert rectified.min() == 0
    assert signed.mean((0, 2, 3)).abs().max() < 1e-4
    assert torch.allclose(signed.std((0, 2, 3)), torch.ones(3), atol=1e-2)


@pytest.mark.parametrize(("count", "prefix"), [(16, 0), (17, 1), (18, 2), (4, 0), (5, 1)])
def test_the_grid_is_the_largest_square_at_the_end(count, prefix):
    tokens = features(2, count, 3)
    before, grid = split_grid(tokens)
    assert (before.shape[1], grid.shape[1]) == (prefix, count - prefix)
    assert torch.equal(torch.cat([before, grid], 1), tokens)


def test_patches_become_a_map_in_reading_order_without_their_prefix():
    tokens = features(2, 10, 3)
    made = as_map(tokens)
    assert made.shape == (2, 3, 3, 3)
    for row in range(3):
        for column in range(3):
            assert torch.equal(made[:, :, row, column], tokens[:, 1 + 3 * row + column])


def test_a_map_is_a_map():
    stage = features(2, 3, 4, 4)
    assert as_map(stage) is stage


def test_resizing_averages_and_keeps_means_and_constants():
    stage = features(2, 3, 8, 8)
    small = resize(stage, 4)
    assert torch.allclose(small[:, :, 0, 0], stage[:, :, :2, :2].mean((2, 3)), atol=1e-6)
    assert torch.allclose(small.mean((2, 3)), stage.mean((2, 3)), atol=1e-6)
    assert resize(stage, 8) is stage
    assert torch.equal(resize(torch.full((1, 2, 4, 4), 7.0), 6), torch.full((1, 2, 6, 6), 7.0))
