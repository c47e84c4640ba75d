"""How near an image is to the one that it should be: PSNR, SSIM, and the energy at high frequencies.

Images are (B, C, H, W) in [-1, 1]; results are (B,) float64, one per image.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from kdbench.tracks.diffusion.data.degrade import gaussian_kernel
from kdbench.tracks.diffusion.evaluate.frechet import frechet

SPAN = 2.0
"""Largest difference of two pixels."""
SSIM_STD = 1.5
WINDOW = 11
"""Pixels of a side of the window of SSIM."""
PATCH = 8
"""Pixels of a side of the patches that :func:`patch_frechet` compares."""


def psnr(x: Tensor, target: Tensor) -> Tensor:
    """(B,) peak signal-to-noise ratio in dB, 10 log10(4 / MSE); infinite for equal images."""
    error = (x.double() - target.double()).square().flatten(1).mean(1)
    return 10 * torch.log10(SPAN**2 / error)


def ssim(x: Tensor, target: Tensor) -> Tensor:
    """(B,) structural similarity, at most 1 (Wang et al., IEEE TIP 2004).

    Gaussian windows of 11 pixels with deviation 1.5 that lie wholly inside the image, K1 = 0.01, K2 = 0.03. Raises
    ``ValueError`` for images smaller than a window.
    """
    if min(x.shape[-2:]) < WINDOW:
        raise ValueError(f"SSIM needs images of {WINDOW} pixels at least, not {tuple(x.shape[-2:])}")
    a, b = x.double(), target.double()
    kernel = gaussian_kernel(SSIM_STD)
    extra = (len(kernel) - WINDOW) // 2
    kernel = kernel[extra:-extra] if extra > 0 else kernel
    kernel = (kernel / kernel.sum()).to(a.device)

    def mean(image: Tensor) -> Tensor:
        channels = image.shape[1]
        down = kernel.view(1, 1, -1, 1).expand(channels, 1, -1, 1)
        across = kernel.view(1, 1, 1, -1).expand(channels, 1, 1, -1)
        first = torch.nn.functional.conv2d(image, down, groups=channels)
        return torch.nn.functional.conv2d(first, across, groups=channels)

    c1, c2 = (0.01 * SPAN) ** 2, (0.03 * SPAN) ** 2
    mean_a, mean_b = mean(a), mean(b)
    var_a, var_b = mean(a * a) - mean_a**2, mean(b * b) - mean_b**2
    both = mean(a * b) - mean_a * mean_b
    value = ((2 * mean_a * mean_b + c1) * (2 * both + c2)) / ((mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2))
    return value.flatten(1).mean(1)


def high_energy(x: Tensor, cutoff: float = 0.25) -> Tensor:
    """(B,) energy per pixel of all frequencies above ``cutoff`` cycles per pixel (radially; 0.5 is Nyquist)."""
    spectrum = torch.fft.fft2(x.double(), norm="ortho").abs().square()
    rows, columns = (torch.fft.fftfreq(side, dtype=torch.float64, device=x.device) for side in x.shape[-2:])
    outside = torch.hypot(rows[:, None], columns[None]) > cutoff
    return (spectrum * outside).flatten(1).sum(1) / math.prod(x.shape[1:])


def high_error(x: Tensor, target: Tensor, cutoff: float = 0.25) -> Tensor:
    """(B,) absolute difference of the logarithms of both high energies: 0 where both have as much of fine detail.

    In nepers of energy: 0.69 is twice or half of it. Energies are counted from 1e-6 on.
    """
    mine, wanted = high_energy(x, cutoff), high_energy(target, cutoff)
    return (torch.log(mine.clamp_min(1e-6)) - torch.log(wanted.clamp_min(1e-6))).abs()


def patch_frechet(x: Tensor, target: Tensor) -> float:
    """Fréchet distance of the pixels of all patches of 8 x 8 pixels, half overlapping, of two sets of images.

    0 or more. Mean and covariance of patches hold the energy at every frequency of up to 8 pixels: blurred images lack
    some of it and noisy ones have it in the wrong places, whichever of them are nearer to the target pixel by pixel.
    """

    def patches(images: Tensor) -> Tensor:
        found = torch.nn.functional.unfold(images.double(), PATCH, stride=PATCH // 2)
        return found.transpose(1, 2).flatten(0, 1)

    return frechet(patches(x), patches(target))
