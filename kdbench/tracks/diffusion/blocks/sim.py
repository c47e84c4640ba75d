"""Score implicit matching (Luo et al., NeurIPS 2024): score-based divergences of any distance, for generators.

D(p, q) = int w(t) E_{x_t ~ sg(p_t)} d(s_p - s_q) dt cannot be differentiated, as the score s_p of the generator is not
known as a function of its parameters. Its gradient is that of

    E [ -d'(y)^T (s_fake(x_t) - grad log p(x_t | x_0)) ],    y = s_fake(x_t) - s_real(x_t),   x_0 = G(z),

in which all of x_t, s_fake(x_t), s_real(x_t) and the conditional score depend on the generator through x_0, while the
parameters of both score networks are frozen (section 3.2 of the paper).
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from kdbench.tracks.diffusion.blocks.sid import per_sample
from kdbench.tracks.diffusion.processes import spread

Distance = Literal["huber", "l2"]


def distance(y: Tensor, kind: Distance, c: float = 0.0) -> Tensor:
    """(B,) d(y): ``huber`` sqrt(||y||^2 + c^2) - c, ``l2`` ||y||^2; norms over all of a sample."""
    square = per_sample(y**2)
    return square if kind == "l2" else (square + c**2).sqrt() - c


def slope(y: Tensor, kind: Distance, c: float = 0.0) -> Tensor:
    """d'(y), shaped like y: ``huber`` y / sqrt(||y||^2 + c^2), ``l2`` 2 y.

    The norm is that of a whole sample, so that ``huber`` gives every sample a vote of at most length 1. ``c`` is above
    0: at y = 0 there is no direction.
    """
    if kind == "l2":
        return 2 * y
    return y / spread((per_sample(y**2) + c**2).sqrt(), y)


def sim_loss(
    x: Tensor, real: Tensor, fake: Tensor, kind: Distance = "huber", *, c: float = 0.0, scale: Tensor | float = 1.0
) -> Tensor:
    """(B,) -d'(y)^T (s_fake - s_cond) of generated samples x (B, *shape), a sum over pixels.

    ``real`` and ``fake``: predictions of x_0 at one noised version of x, neither detached. A score is the prediction
    times alpha / sigma^2, less a term that all have in common: ``scale`` (B,) or a number is this factor, y is ``scale
    (fake - real)`` and s_fake - s_cond is ``scale (fake - x)``. With 1 the distance is between denoisers, which is
    weight w = 1 / scale^2 for ``l2``. ``c`` is in units of y.

    With ``l2`` this is 2 scale^2 times :func:`~kdbench.tracks.diffusion.blocks.sid.sid_loss` of alpha 1 without omega.
    """
    factor = spread(scale, x)
    return -per_sample(slope(factor * (fake - real), kind, c) * (factor * (fake - x)))
