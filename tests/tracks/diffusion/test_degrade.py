"""Degradations: blur, subsampling, noise and the rounding of coefficients."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.fft import dctn, idctn
from scipy.ndimage import gaussian_filter

from kdbench.tracks.diffusion.data.degrade import blur, dct_matrix, gaussian_kernel, lowered, magnified, quantized


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def image(*shape, seed=0):
    return torch.rand(*shape, generator=generator(seed), dtype=torch.float64) * 2 - 1


def test_blur_is_that_of_scipy():
    x = image(2, 1, 20, 24)
    wanted = np.stack([gaussian_filter(row[0].numpy(), 1.3, mode="nearest", radius=4) for row in x])
    assert len(gaussian_kernel(1.3)) == 9
    assert np.abs(blur(x, 1.3)[:, 0].numpy() - wanted).max() < 1e-12
    assert blur(x, 0.0) is x


def test_channels_are_blurred_apart():
    x = image(2, 3, 16, 16)
    assert torch.allclose(blur(x, 1.0)[:, 1:2], blur(x[:, 1:2], 1.0))


def test_transform_is_orthonormal():
    matrix = dct_matrix(4)
    assert torch.allclose(matrix @ matrix.T, torch.eye(4, dtype=torch.float64))


def test_coefficients_are_rounded_as_by_scipy():
    x, step = image(1, 1, 8, 8), 0.1
    steps = step * (1 + np.add.outer(np.arange(4), np.arange(4)))
    wanted = np.empty((8, 8))
    for row in (0, 4):
        for column in (0, 4):
            block = dctn(x[0, 0, row : row + 4, column : column + 4].numpy(), norm="ortho")
            wanted[row : row + 4, column : column + 4] = idctn(np.round(block / steps) * steps, norm="ortho")
    assert np.abs(quantized(x, step)[0, 0].numpy() - wanted).max() < 1e-12
    assert quantized(x, 0.0) is x


def test_high_frequencies_lose_most():
    matrix, x = dct_matrix(4), image(500, 1, 4, 4)
    lost = (matrix @ (quantized(x, 0.1) - x) @ matrix.T).square().mean((0, 1))
    assert lost[3, 3] > 10 * lost[0, 0] > 0


def test_blocks_must_be_whole():
    with pytest.raises(ValueError, match="no whole blocks"):
        quantized(image(1, 1, 6, 8), 0.1)


@pytest.mark.parametrize("factor", [2, 3, 4, 8])
def test_a_slope_stays_where_it_is(factor):
    """Subsampling shifts nothing: cell i of the result has the value in the middle of its cell."""
    side = 24 * factor
    x = torch.linspace(-0.5, 0.5, side, dtype=torch.float64).expand(1, 1, side, side)
    low = lowered(x, factor, generator(), blur_std=0.4, noise_std=0.0, step=0.0)
    middles = x[0, 0, 0].view(24, factor).mean(1)
    assert torch.allclose(low[0, 0, 5, 4:-4], middles[4:-4], atol=1e-12)
    assert (magnified(low, factor) - x)[..., 6 * factor : -6 * factor].abs().max() < 1e-12


def test_noise_has_its_deviation_and_its_generator():
    x = torch.zeros(200, 1, 16, 16)
    options = {"blur_std": 0.4, "noise_std": 0.1, "step": 0.0}
    once, same = (lowered(x, 2, generator(1), **options) for _ in range(2))
    other = lowered(x, 2, generator(2), **options)
    assert torch.equal(once, same)
    assert not torch.equal(once, other)
    assert float(once.std()) == pytest.approx(0.1, rel=0.03)


def test_values_stay_in_range():
    x = torch.ones(4, 1, 16, 16)
    low = lowered(x, 2, generator(), blur_std=0.4, noise_std=0.3, step=0.5)
    assert low.abs().max() <= 1
    assert magnified(low, 2).abs().max() <= 1


def test_every_part_of_the_degradation_costs():
    x = torch.from_numpy(np.kron(np.eye(4), np.ones((8, 8))))[None, None] - 0.5

    def error(**changes):
        options = {"blur_std": 0.0, "noise_std": 0.0, "step": 0.0} | changes
        return float((lowered(x, 1, generator(), **options) - x).square().mean())

    assert error() == 0
    assert error(blur_std=0.5) > 0
    assert error(noise_std=0.1) > 0
    assert error(step=0.3) > 0


def test_sides_are_divided():
    with pytest.raises(ValueError, match="not divided by 8"):
        lowered(image(1, 1, 12, 16), 8, generator(), blur_std=0.0, noise_std=0.0, step=0.0)
