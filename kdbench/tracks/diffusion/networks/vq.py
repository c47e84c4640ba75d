"""A tokenizer of pictures: an autoencoder whose latent vectors are the nearest of a small codebook.

van den Oord et al., NeurIPS 2017: L = |x - D(q)|^2 + |sg(z) - q|^2 + beta |z - sg(q)|^2 with q the code nearest to
z = E(x), and the gradient at q handed on to z. Codes that nothing is near to are put where a latent vector is.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

BETA = 0.25
"""Weight of the commitment of latent vectors to their codes."""


class VqAutoencoder(nn.Module):
    """Grey pictures (B, 1, P, P) to (P / 4)^2 codes and back."""

    def __init__(self, size: int, codebook: int, dim: int, width: int = 32) -> None:
        """``size`` is P; ``codebook`` the number of codes, each of ``dim`` numbers."""
        super().__init__()
        if size % 4:
            raise ValueError(f"pictures of {size} pixels are not divided by 4")
        self.side = size // 4
        """Codes of a row and of a column."""
        self.config = {"size": size, "codebook": codebook, "dim": dim, "width": width}
        self.encoder = nn.Sequential(
            nn.Conv2d(1, width, 4, 2, 1),
            nn.SiLU(),
            nn.Conv2d(width, width, 4, 2, 1),
            nn.SiLU(),
            nn.Conv2d(width, width, 3, 1, 1),
            nn.SiLU(),
            nn.Conv2d(width, dim, 1),
        )
        self.decoder = nn.Sequential(
            nn.Conv2d(dim, width, 3, 1, 1),
            nn.SiLU(),
            nn.Conv2d(width, width, 3, 1, 1),
            nn.SiLU(),
            nn.ConvTranspose2d(width, width, 4, 2, 1),
            nn.SiLU(),
            nn.ConvTranspose2d(width, 1, 4, 2, 1),
        )
        self.codebook = nn.Parameter(torch.randn(codebook, dim))

    def latents(self, x: Tensor) -> Tensor:
        """(B, L, dim) vectors of pictures, in raster order, before they are rounded to codes."""
        return self.encoder(x).flatten(2).transpose(1, 2)

    def nearest(self, vectors: Tensor) -> Tensor:
        """(...) int64 codes nearest to vectors (..., dim)."""
        return nearest_code(vectors, self.codebook)

    def encode(self, x: Tensor) -> Tensor:
        """(B, L) int64 codes of pictures."""
        return self.nearest(self.latents(x))

    def decode_vectors(self, vectors: Tensor) -> Tensor:
        """(B, 1, P, P) pictures, in [-1, 1], of vectors (B, L, dim)."""
        grid = vectors.transpose(1, 2).unflatten(2, (self.side, self.side))
        return self.decoder(grid).tanh()

    def decode(self, codes: Tensor) -> Tensor:
        """(B, 1, P, P) pictures of codes (B, L)."""
        return self.decode_vectors(self.codebook[codes])

    def losses(self, x: Tensor) -> dict[str, Tensor]:
        """``reconstruction``, ``codes`` and ``commitment``: mean squared errors, the last with its weight."""
        z = self.latents(x)
        q = self.codebook[self.nearest(z)]
        handed = z + (q - z).detach()
        return {
            "reconstruction": F.mse_loss(self.decode_vectors(handed), x),
            "codes": F.mse_loss(q, z.detach()),
            "commitment": BETA * F.mse_loss(z, q.detach()),
        }

    @torch.no_grad()
    def revive(self, x: Tensor, generator: torch.Generator) -> int:
        """Move the codes that none of the pictures uses to latent vectors of these, drawn at random; how many."""
        z = self.latents(x).flatten(0, 1)
        used = torch.bincount(self.nearest(z), minlength=len(self.codebook)) > 0
        dead = (~used).nonzero()[:, 0]
        picks = torch.randint(len(z), (len(dead),), generator=generator)
        self.codebook[dead] = z[picks.to(z.device)]
        return len(dead)


def nearest_code(vectors: Tensor, codebook: Tensor) -> Tensor:
    """(...) int64 rows of ``codebook`` (V, dim) nearest to vectors (..., dim); the first where two are as near."""
    flat = vectors.reshape(-1, vectors.shape[-1])
    return torch.cdist(flat, codebook, compute_mode="donot_use_mm_for_euclid_dist").argmin(1).view(vectors.shape[:-1])
