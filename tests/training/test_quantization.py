"""Quantized weights: identities of the uniform quantizer, learned levels against their formula, and sizes."""

import math

import pytest
import torch

from kdbench.training.quantization import (
    LearnedLevels,
    allocate_points,
    huffman_lengths,
    layer_weights,
    scale,
    straight_through,
    tensor_size,
    uniform,
)


def weights(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("bucket", [None, 7, 64])
@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_quantizing_twice_changes_nothing(bits, bucket):
    once = uniform(weights(5, 33), bits, bucket)
    twice = uniform(once.weights, bits, bucket)
    torch.testing.assert_close(twice.weights, once.weights, rtol=0, atol=1e-6)
    assert torch.equal(twice.indices, once.indices)


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_the_error_is_at_most_half_a_level_of_the_own_bucket(bits):
    w = weights(40, 16) * torch.logspace(-3, 2, 40)[:, None]  # buckets of very different ranges
    made = uniform(w, bits, 16)
    span = (w.amax(1) - w.amin(1))[:, None]
    assert ((made.weights - w).abs() <= span / (2 * (2**bits - 1)) * (1 + 1e-4)).all()
    # one bucket for all loses the small rows
    coarse = uniform(w, bits, None).weights
    assert (coarse[:10] - w[:10]).abs().sum() > (made.weights[:10] - w[:10]).abs().sum()


def test_filler_is_dropped_and_constant_buckets_are_kept():
    w = torch.cat([torch.full((6,), 0.3), weights(5)])
    made = uniform(w, 2, 6)
    assert made.weights.shape == w.shape
    assert made.indices.shape == w.shape
    assert made.buckets == 2
    torch.testing.assert_close(made.weights[:6], w[:6])
    assert scale(w, 6).values[1, -1] == scale(w, 6).values[1, 4]  # filled with the last value


def test_stochastic_rounding_is_unbiased_and_takes_neighbours():
    w, generator = weights(64), torch.Generator().manual_seed(1)
    draws = torch.stack([uniform(w, 2, 16, generator).weights for _ in range(2000)])
    step = (w.view(4, 16).amax(1) - w.view(4, 16).amin(1)).repeat_interleave(16) / 3
    assert ((draws - w).abs() <= step * (1 + 1e-4)).all()
    # the standard error of a mean of 2000 draws within one step is at most step / 2 / sqrt(2000)
    assert ((draws.mean(0) - w).abs() <= 5 * step / 2 / math.sqrt(2000) + 1e-6).all()
    assert draws.std(0).max() > 0


def test_straight_through_has_the_value_of_one_and_the_gradient_of_the_other():
    w = torch.tensor([-2.0, -0.5, 0.7, 1.5], requires_grad=True)
    q = uniform(w, 1).weights
    (straight_through(w, q) * torch.arange(4.0)).sum().backward()
    assert torch.equal(straight_through(w, q), q)
    assert torch.equal(w.grad, torch.arange(4.0))
    w.grad = None
    (straight_through(w, q, 1.0) * torch.arange(1.0, 5.0)).sum().backward()
    assert torch.equal(w.grad, torch.tensor([0.0, 2.0, 3.0, 0.0]))


@pytest.mark.parametrize("bucket", [None, 8])
def test_gradient_of_the_levels_is_the_scatter_add(bucket):
    w = weights(3, 7).double()
    levels = LearnedLevels(w, 4, bucket)
    upstream = weights(3, 7, seed=1).double()
    (levels() * upstream).sum().backward()
    made = scale(w, bucket)
    span = made.unfilled(made.span.expand_as(made.values))
    nearest = (made.unfilled(made.values)[:, None] - levels.points.detach()).abs().argmin(1)
    expected = torch.zeros(4, dtype=torch.float64).index_add_(0, nearest, span * upstream.flatten())
    torch.testing.assert_close(levels.points.grad, expected)


def test_levels_start_where_the_weights_are_and_stay_sorted():
    w = weights(500) ** 3  # heavy tails: quantiles are far from a uniform grid
    quantiles, grid = LearnedLevels(w, 8, None), LearnedLevels(w, 8, None, "uniform")
    assert (quantiles() - w).abs().mean() < (grid() - w).abs().mean()
    torch.testing.assert_close(grid.quantized().weights, uniform(w, 3).weights)
    with torch.no_grad():
        quantiles.points.copy_(quantiles.points.flip(0))
    quantiles.sort()
    assert (quantiles.points.diff() >= 0).all()


def test_points_go_to_large_gradients():
    assert allocate_points([1.0, 1.0, 1.0], 4) == [4, 4, 4]
    assert allocate_points([0.0, 0.0], 8) == [8, 8]
    assert allocate_points([3.0, 1.0], 8) == [4 + 6, 4 + 2]
    made = allocate_points([0.1, 0.7, 0.33], 16)
    assert sum(made) == 3 * 16
    assert min(made) >= 8
    assert allocate_points([1.0, 0.0], 2) == [2, 2]


def test_huffman_is_within_one_bit_of_the_entropy_and_decodable():
    counts = [50, 20, 20, 5, 4, 1, 0]
    lengths = huffman_lengths(counts)
    total = sum(counts)
    mean = sum(count * length for count, length in zip(counts, lengths)) / total
    entropy = -sum(c / total * math.log2(c / total) for c in counts if c)
    assert entropy <= mean < entropy + 1
    assert sum(2.0**-length for length, count in zip(lengths, counts) if count) == 1  # Kraft
    assert lengths[-1] == 0
    assert huffman_lengths([4, 4, 4, 4]) == [2, 2, 2, 2]
    assert huffman_lengths([0, 9]) == [0, 0]


def test_size_counts_codes_and_the_floats_of_buckets():
    made = uniform(torch.linspace(0, 1, 64), 2, 32)
    plain, learned = tensor_size(made, 4), tensor_size(made, 4, learned=True)
    assert (plain.weights, plain.levels, plain.used) == (64, 4, 4)
    assert plain.side_bits == 2 * 2 * 32
    assert learned.side_bits == plain.side_bits + 4 * 32
    assert plain.code_bits <= 64 * 2


def test_layers_are_those_with_matrices_and_kernels():
    model = torch.nn.Sequential(
        torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.Conv2d(4, 4, 1), torch.nn.Linear(4, 2)
    )
    assert layer_weights(model) == ["0.weight", "2.weight", "3.weight"]
    assert layer_weights(model, ends=False) == ["2.weight"]
