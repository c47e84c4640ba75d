"""Score identity distillation (Zhou et al., ICML 2024): an explicit score matching loss for generators.

x (B, *shape) are generated samples, ``real`` and ``fake`` the predictions of x_0 at one noised version of them by the
teacher and by the network that follows the generator. The parameters of both are frozen, but x goes through both and
the gradient comes back through both: none of the three is detached here.
"""

from __future__ import annotations

from torch import Tensor

from kdbench.tracks.diffusion.blocks.dmd import normalizer

FLOOR = 1e-5
"""Least value of omega."""


def per_sample(values: Tensor) -> Tensor:
    """(B,) sums over all but the first dimension."""
    return values.flatten(1).sum(1)


def omega(x: Tensor, real: Tensor) -> Tensor:
    """(B,) mean of |x - real| over the pixels, at least 1e-5, without gradient."""
    return normalizer(x, real, FLOOR).flatten()


def sid_loss(x: Tensor, real: Tensor, fake: Tensor, alpha: float = 1.0, *, normalize: bool = True) -> Tensor:
    """(B,) (real - fake) . [(real - x) - alpha (real - fake)] / omega, a sum over pixels.

    ``alpha`` 1 is the loss whose gradient is exact; beyond it the squared distance of the scores, which an imperfect
    ``fake`` overstates, is subtracted. ``normalize`` False leaves omega out.
    """
    gap = real - fake
    inner = fake - x if alpha == 1 else (real - x) - alpha * gap
    loss = per_sample(gap * inner)
    return loss / omega(x, real) if normalize else loss
