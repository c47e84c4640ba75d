"""Augmentations with learned parameters, differentiable in them: affine maps and movements in a latent space."""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

AFFINE = ("shift_x", "shift_y", "rotation", "scale", "shear")
"""Of an affine map: shifts in halves of the image's width and height, rotation in radians, the logarithm of the
scale, shear as a slope."""


def affine(x: Tensor, theta: Tensor) -> Tensor:
    """Images (B, C, H, W) moved by ``theta`` (B, 5), in the order of :data:`AFFINE`; 0 is the identity.

    A positive shift moves the content right and down, a positive rotation turns it clockwise, a positive scale enlarges
    it. Bilinear, border pixels are repeated; gradients reach both arguments.
    """
    tx, ty, angle, scale, shear = theta.unbind(1)
    cos, sin, zoom = torch.cos(angle), torch.sin(angle), torch.exp(-scale)
    # affine_grid wants the inverse map: from places in the result to places in the image.
    rows = [
        torch.stack([cos * zoom, (sin + shear * cos) * zoom], 1),
        torch.stack([-sin * zoom, (cos - shear * sin) * zoom], 1),
    ]
    inverse = torch.stack(rows, 1)
    offset = -(inverse @ torch.stack([tx, ty], 1).unsqueeze(2))
    grid = F.affine_grid(torch.cat([inverse, offset], 2), list(x.shape), align_corners=False)
    return F.grid_sample(x, grid, mode="bilinear", padding_mode="border", align_corners=False)


class AffineAugmentor(nn.Module):
    """theta = mu + L eps with eps ~ N(0, I) per image: the distribution of affine maps is what is learned.

    mu and the lower-triangular L are the same for all images, or with ``predicted`` come from a small network. Parts
    of theta that are not ``free`` stay 0. L starts as ``start`` times the identity, mu at 0.
    """

    def __init__(
        self, free: tuple[str, ...] = AFFINE, *, start: float = 0.05, predicted: bool = False, channels: int = 3
    ) -> None:
        """Raises ``ValueError`` for names that :data:`AFFINE` does not have."""
        unknown = [name for name in free if name not in AFFINE]
        if unknown or not free:
            raise ValueError(f"free names parts of an affine map ({', '.join(AFFINE)}), not {unknown or 'none'}")
        super().__init__()
        d = len(AFFINE)
        self.free: Tensor
        self.register_buffer("free", torch.tensor([float(name in free) for name in AFFINE]))
        self.mu = nn.Parameter(torch.zeros(d))
        self.scale = nn.Parameter(start * torch.eye(d))
        self.net: nn.Sequential | None = None
        if predicted:
            self.net = nn.Sequential(
                nn.Conv2d(channels, 8, 3, 2, 1),
                nn.ReLU(),
                nn.AdaptiveAvgPool2d(4),
                nn.Flatten(),
                nn.Linear(8 * 16, d + d * d),
            )
            nn.init.zeros_(self.net[-1].weight)  # type: ignore[arg-type]
            nn.init.zeros_(self.net[-1].bias)  # type: ignore[arg-type]

    def moments(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """mu (B, 5) and L (B, 5, 5) of images (B, C, H, W)."""
        d = len(AFFINE)
        mu, scale = self.mu.expand(len(x), d), self.scale.expand(len(x), d, d)
        if self.net is not None:
            own = self.net(x)
            mu, scale = mu + own[:, :d], scale + own[:, d:].view(-1, d, d)
        return mu * self.free, torch.tril(scale) * self.free[:, None]

    def forward(self, x: Tensor, generator: torch.Generator) -> Tensor:
        mu, scale = self.moments(x)
        eps = torch.randn(len(x), len(AFFINE), generator=generator).to(x)
        return affine(x, mu + (scale @ eps.unsqueeze(2)).squeeze(2))

    @torch.no_grad()
    def ranges(self, x: Tensor) -> dict[str, float]:
        """Standard deviation of each part over images and noise, by name, in the units of :data:`AFFINE`."""
        mu, scale = self.moments(x)
        variance = scale.square().sum(2).mean(0) + mu.var(0, correction=0)
        return {name: math.sqrt(value) for name, value in zip(AFFINE, variance.tolist(), strict=True)}


class VAE(nn.Module):
    """A small variational autoencoder (Kingma and Welling, ICLR 2014) of images (B, C, P, P), P a multiple of 4."""

    def __init__(self, size: int, latent: int = 16, *, width: int = 16, channels: int = 3) -> None:
        """Raises ``ValueError`` where 4 does not divide ``size``."""
        if size % 4:
            raise ValueError(f"the autoencoder halves images twice, which {size} pixels do not allow")
        super().__init__()
        side = size // 4
        self.encoder = nn.Sequential(
            nn.Conv2d(channels, width, 3, 2, 1),
            nn.ReLU(),
            nn.Conv2d(width, 2 * width, 3, 2, 1),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(2 * width * side * side, 2 * latent),
        )
        self.decoder = nn.Sequential(
            nn.Linear(latent, 2 * width * side * side),
            nn.ReLU(),
            nn.Unflatten(1, (2 * width, side, side)),
            nn.ConvTranspose2d(2 * width, width, 4, 2, 1),
            nn.ReLU(),
            nn.ConvTranspose2d(width, channels, 4, 2, 1),
        )

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log-variance (B, latent)."""
        mean, log_variance = self.encoder(x).chunk(2, 1)
        return mean, log_variance

    def loss(self, x: Tensor, generator: torch.Generator, *, beta: float = 1.0) -> dict[str, Tensor]:
        """Negative evidence bound per image, for pixels of unit variance: squared error and divergence of the code."""
        mean, log_variance = self.encode(x)
        eps = torch.randn(mean.shape, generator=generator).to(mean)
        made = self.decoder(mean + (log_variance / 2).exp() * eps)
        divergence = (mean.square() + log_variance.exp() - 1 - log_variance).sum(1) / 2
        error = (made - x).square().flatten(1).sum(1) / 2
        return {"reconstruction": error.mean(), "divergence": beta * divergence.mean()}


class LatentAugmentor(nn.Module):
    """Decodes z + radius tanh(h(z, eps)), z the code of the image, h a learned network, eps ~ N(0, I) per image.

    ``residual`` adds what the movement changes, dec(z') - dec(z), to the image itself, so that what a small
    autoencoder cannot draw stays in it. The autoencoder is frozen. h starts near 0.
    """

    def __init__(self, vae: VAE, latent: int, *, radius: float = 3.0, residual: bool = True, width: int = 64) -> None:
        super().__init__()
        self.vae = vae.requires_grad_(False).eval()
        self.radius, self.residual, self.latent = radius, residual, latent
        self.net = nn.Sequential(nn.Linear(2 * latent, width), nn.ReLU(), nn.Linear(width, latent))

    def perturbation(self, z: Tensor, generator: torch.Generator) -> Tensor:
        """(B, latent), each entry within the radius."""
        eps = torch.randn(z.shape, generator=generator).to(z)
        return self.radius * torch.tanh(self.net(torch.cat([z, eps], 1)))

    def forward(self, x: Tensor, generator: torch.Generator) -> Tensor:
        z = self.vae.encode(x)[0]
        made: Tensor = self.vae.decoder(z + self.perturbation(z, generator))
        return x + made - self.vae.decoder(z) if self.residual else made

    @torch.no_grad()
    def ranges(self, x: Tensor) -> dict[str, float]:
        """Root mean square of the perturbation of a code entry, for one draw of the noise; at most the radius."""
        z = self.vae.encode(x)[0]
        moved = self.perturbation(z, torch.Generator().manual_seed(0))
        return {"latent": float(moved.square().mean().sqrt())}


Fixed = Literal["random-shift", "randaugment"]


class FixedAugmentor(nn.Module):
    """Augmentation with nothing to learn.

    ``random-shift``: whole-pixel shifts, uniform up to ``reach`` in both directions. ``randaugment``: an affine map,
    contrast and brightness, all drawn uniformly up to ``magnitude`` (in the manner of Cubuk et al., NeurIPS 2020, with
    operations that are differentiable here and always all of them).
    """

    def __init__(self, kind: Fixed, *, reach: int = 4, magnitude: float = 0.2) -> None:
        super().__init__()
        self.kind, self.reach, self.magnitude = kind, reach, magnitude

    def forward(self, x: Tensor, generator: torch.Generator) -> Tensor:
        b, size = len(x), x.shape[-1]
        if self.kind == "random-shift":
            shift = torch.randint(-self.reach, self.reach + 1, (b, 2), generator=generator)
            theta = F.pad(2 * shift / size, (0, len(AFFINE) - 2))
            return affine(x, theta.to(x))
        drawn = self.magnitude * (2 * torch.rand(b, len(AFFINE) + 2, generator=generator) - 1).to(x)
        moved = affine(x, drawn[:, : len(AFFINE)])
        return moved * (1 + drawn[:, -2]).view(b, 1, 1, 1) + drawn[:, -1].view(b, 1, 1, 1)


class Alternation:
    """Whose turn it is by the smoothed disagreement: the augmentor's below ``low`` until it exceeds ``high``.

    In between whoever has the turn keeps it (hysteresis). The student has the first turn.
    """

    def __init__(self, low: float, high: float, *, decay: float = 0.9) -> None:
        """``low`` < ``high``; ``decay`` in [0, 1) of the exponential average. Raises ``ValueError`` otherwise."""
        if not low < high:
            raise ValueError(f"the lower threshold {low} is not below the upper one {high}")
        self.low, self.high, self.decay = low, high, decay
        self.smoothed: float | None = None
        self.augmentor = False

    def see(self, disagreement: float) -> bool:
        """Take one value in; whether it is the augmentor's turn."""
        before = disagreement if self.smoothed is None else self.smoothed
        self.smoothed = self.decay * before + (1 - self.decay) * disagreement
        if self.smoothed < self.low:
            self.augmentor = True
        elif self.smoothed > self.high:
            self.augmentor = False
        return self.augmentor

    def state_dict(self) -> dict[str, float | bool | None]:
        return {"smoothed": self.smoothed, "augmentor": self.augmentor}

    def load_state_dict(self, state: dict[str, float | bool | None]) -> None:
        self.smoothed, self.augmentor = state["smoothed"], bool(state["augmentor"])
