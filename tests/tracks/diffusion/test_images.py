"""PSNR, SSIM and the energy at high frequencies, against scikit-image and known cases."""

from __future__ import annotations

import math

import pytest
import torch

from kdbench.tracks.diffusion.data.degrade import blur
from kdbench.tracks.diffusion.evaluate.images import high_energy, high_error, patch_frechet, psnr, ssim


def pair():
    generator = torch.Generator().manual_seed(0)
    x = blur(torch.randn(3, 2, 20, 24, generator=generator, dtype=torch.float64), 1.0).clamp(-1, 1)
    return x, (x + 0.1 * torch.randn(x.shape, generator=generator, dtype=torch.float64)).clamp(-1, 1)


def test_psnr_of_a_known_error():
    x = torch.zeros(2, 1, 4, 4)
    y = x + torch.tensor([0.2, 0.02])[:, None, None, None]
    assert psnr(x, y).tolist() == pytest.approx([20.0, 40.0], abs=1e-5)
    assert math.isinf(psnr(x, x)[0])


def test_psnr_and_ssim_are_those_of_scikit_image():
    metrics = pytest.importorskip("skimage.metrics")
    x, y = pair()
    peak, similar = psnr(x, y), ssim(x, y)
    options = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 2.0}
    for row in range(len(x)):
        a, b = x[row].numpy(), y[row].numpy()
        assert float(peak[row]) == pytest.approx(metrics.peak_signal_noise_ratio(a, b, data_range=2.0), abs=1e-9)
        wanted = metrics.structural_similarity(a, b, channel_axis=0, **options)
        assert float(similar[row]) == pytest.approx(wanted, abs=1e-9)


def test_ssim_of_equal_and_of_opposite_images():
    x, y = pair()
    assert torch.allclose(ssim(x, x), torch.ones(3, dtype=torch.float64))
    assert torch.allclose(ssim(x, y), ssim(y, x))
    board = (-1.0) ** torch.arange(16).add(torch.arange(16)[:, None])[None, None]
    assert float(ssim(board, -board)) == pytest.approx(-1, abs=0.01)


def test_ssim_needs_a_window():
    with pytest.raises(ValueError, match="11 pixels"):
        ssim(torch.zeros(1, 1, 8, 8), torch.zeros(1, 1, 8, 8))


def test_energy_of_all_frequencies_is_that_of_the_pixels():
    x, _ = pair()
    assert torch.allclose(high_energy(x, cutoff=-1.0), x.square().flatten(1).mean(1))


def test_waves_count_above_the_cutoff_alone():
    place = torch.arange(32, dtype=torch.float64)
    slow, fast = (torch.cos(2 * math.pi * f * place).expand(1, 1, 32, 32) for f in (4 / 32, 12 / 32))
    assert float(high_energy(slow)) == pytest.approx(0, abs=1e-12)
    assert float(high_energy(fast)) == pytest.approx(0.5)
    assert float(high_energy(fast.transpose(-1, -2))) == pytest.approx(0.5)


def test_error_of_energies_is_that_of_their_logarithms():
    x, _ = pair()
    assert high_error(x, x).tolist() == [0, 0, 0]
    assert high_error(x * 2**0.5, x).tolist() == pytest.approx([math.log(2)] * 3)
    assert (high_error(blur(x, 2.0), x) > 1).all()


def test_patches_of_blurred_and_of_noisy_images_are_unlike_those_of_others():
    generator = torch.Generator().manual_seed(0)
    first, second = (blur(torch.randn(200, 1, 32, 32, generator=generator), 1.0) for _ in range(2))
    noise = 0.1 * torch.randn(first.shape, generator=generator)
    alike = patch_frechet(first, second)
    assert patch_frechet(first, first) == pytest.approx(0, abs=1e-9)
    assert 0 < alike < 0.1 * patch_frechet(first + noise, second)
    assert alike < 0.1 * patch_frechet(blur(first, 1.0), second)
    # a shift of the mean counts as it is, once for each of the 64 pixels
    assert patch_frechet(first + 0.5, first) == pytest.approx(64 * 0.25, rel=1e-6)
