"""A decoder after a frozen generator of one step, and what it is trained against.

In latent diffusion the last thing that touches a sample is the decoder of an autoencoder, and it can learn to mend what
one step leaves (Noroozi et al., ECCV 2024). In pixel space a residual network of a few convolutions takes its place.
Images are (B, C, H, W).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Refiner(nn.Module):
    """x + f(x), the identity at first."""

    def __init__(self, channels: int, width: int = 16, depth: int = 2) -> None:
        """``depth`` convolutions of ``width`` channels, and one that ends in zeros."""
        super().__init__()
        self.config = {"channels": channels, "width": width, "depth": depth}
        layers: list[nn.Module] = []
        for number in range(depth):
            layers += [nn.Conv2d(channels if number == 0 else width, width, 3, padding=1), nn.SiLU()]
        last = nn.Conv2d(width, channels, 3, padding=1)
        nn.init.zeros_(last.weight)
        assert last.bias is not None
        nn.init.zeros_(last.bias)
        self.body = nn.Sequential(*layers, last)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, C, H, W)."""
        return x + self.body(x)


class RandomFeatures(nn.Module):
    """Maps of a convolutional network that nobody has trained: what a perceptual distance needs at least.

    Its weights are those of one seed, whatever the global generators are. Maps of each scale have channels of unit
    length at every place, as those of LPIPS (Zhang et al., CVPR 2018).
    """

    def __init__(self, channels: int, widths: Sequence[int] = (16, 32, 64), seed: int = 0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        sizes = list(zip((channels, *widths), widths, strict=False))
        self.convs = nn.ModuleList(nn.Conv2d(before, after, 3, padding=1) for before, after in sizes)
        with torch.no_grad():
            for conv, (before, _) in zip(self.convs, sizes, strict=True):
                conv.weight.copy_(torch.randn(conv.weight.shape, generator=generator) * (2 / (9 * before)) ** 0.5)
                conv.bias.copy_(0.1 * torch.randn(conv.bias.shape, generator=generator))
        self.requires_grad_(False)

    def forward(self, x: Tensor) -> list[Tensor]:
        """Maps (B, C_i, H / 2^i, W / 2^i), the finest first."""
        maps = []
        for number, conv in enumerate(self.convs):
            x = F.leaky_relu(conv(x if number == 0 else F.avg_pool2d(x, 2)), 0.2)
            maps.append(F.normalize(x, dim=1, eps=1e-6))
        return maps

    def distance(self, x: Tensor, target: Tensor) -> Tensor:
        """Scalar: squared distance of the maps at each place, averaged over places, scales and images."""
        pairs = zip(self(x), self(target), strict=True)
        return torch.stack([(mine - wanted).pow(2).sum(1).mean() for mine, wanted in pairs]).mean()


class PatchDiscriminator(nn.Module):
    """Logits of overlapping patches, positive for real ones (Isola et al., CVPR 2017)."""

    def __init__(self, channels: int, width: int = 16) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(channels, width, 4, 2, 1),
            nn.LeakyReLU(0.2),
            nn.Conv2d(width, 2 * width, 4, 2, 1),
            nn.GroupNorm(4, 2 * width),
            nn.LeakyReLU(0.2),
            nn.Conv2d(2 * width, 1, 3, padding=1),
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, 1, H / 4, W / 4)."""
        logits: Tensor = self.body(x)
        return logits
