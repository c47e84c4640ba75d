"""f-divergences between a generator and its teacher, in one step of score distillation.

With p the generator's density, q the teacher's and r = q / p, D_f(q || p) = E_p f(r). Its gradient weighs the
difference of the scores (Xu et al., 2025), and it is an integral over the noise levels of VE diffusion
(Wang et al., NeurIPS 2025, theorem 3.1):

    dD_f / dtheta = E_p [h(r) (s_p - s_q) dx / dtheta],               h(r) = r^2 f''(r),
    D_f(q || p) = int 1/2 E_{p_s} [h(r) ||s_p - s_q||^2] d(s^2).

The gradient of one level of the integral has three parts: score implicit matching with the weight h, one along the
difference of the scores with the weight ``direct`` (these two are theorem 3.2), and one along the change of its square
with the weight ``moved``, from the points at which scores are compared.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from kdbench.errors import UsageError, did_you_mean
from kdbench.tracks.diffusion.blocks.sid import omega, per_sample, sid_loss
from kdbench.tracks.diffusion.processes import spread

Function = Callable[[Tensor], Tensor]
EPSILON = 1e-6
"""Added to means that are divided by."""


@dataclass(frozen=True)
class FDivergence:
    """A convex f with f(1) = 0, and what score distillation needs of it; every function takes and gives (B,), r > 0."""

    name: str
    title: str
    f: Function
    h: Function
    """r^2 f''(r), the weight of a sample."""
    slope: Function
    """h'(r)."""
    bend: Function
    """h''(r)."""
    constant: bool = False
    """h is 1 everywhere: reverse KL."""

    def direct(self, r: Tensor) -> Tensor:
        """-r^2 h''(r): weight of the part along the difference of scores; 0 for all of the KL type."""
        return -(r**2) * self.bend(r)

    def moved(self, r: Tensor) -> Tensor:
        """h(r) - r h'(r): weight of the change of ||s_p - s_q||^2 along x."""
        return self.h(r) - r * self.slope(r)


def _js(r: Tensor) -> Tensor:
    return r * r.log() - (r + 1) * ((r + 1) / 2).log()


def _softened(r: Tensor) -> Tensor:
    return (r + 1) * ((r + 1) / (2 * r)).log()


DIVERGENCES = {
    divergence.name: divergence
    for divergence in (
        FDivergence(
            "rkl",
            "reverse KL, KL(p || q)",
            lambda r: -r.log(),
            torch.ones_like,
            torch.zeros_like,
            torch.zeros_like,
            constant=True,
        ),
        FDivergence(
            "kl", "forward KL, KL(q || p)", lambda r: r * r.log(), torch.clone, torch.ones_like, torch.zeros_like
        ),
        FDivergence(
            "js",
            "twice the Jensen-Shannon divergence",
            _js,
            lambda r: r / (r + 1),
            lambda r: (r + 1) ** -2,
            lambda r: -2 * (r + 1) ** -3,
        ),
        FDivergence(
            "sh",
            "twice the squared Hellinger distance, int (sqrt p - sqrt q)^2",
            lambda r: 2 * (r.sqrt() - 1) ** 2,
            torch.sqrt,
            lambda r: r**-0.5 / 2,
            lambda r: -(r**-1.5) / 4,
        ),
        FDivergence(
            "jf",
            "Jeffreys, KL in both directions",
            lambda r: (r - 1) * r.log(),
            lambda r: 1 + r,
            torch.ones_like,
            torch.zeros_like,
        ),
        FDivergence(
            "sf",
            "softened reverse KL, twice KL((p + q) / 2 || q)",
            _softened,
            lambda r: 1 / (1 + r),
            lambda r: -((1 + r) ** -2),
            lambda r: 2 * (1 + r) ** -3,
        ),
        FDivergence(
            "neyman",
            "half of Neyman's chi^2, int (p - q)^2 / q",
            lambda r: (1 - r) ** 2 / (2 * r),
            lambda r: 1 / r,
            lambda r: -(r**-2),
            lambda r: 2 * r**-3,
        ),
        FDivergence(
            "chi2",
            "Pearson's chi^2, int (p - q)^2 / p",
            lambda r: (r - 1) ** 2,
            lambda r: 2 * r**2,
            lambda r: 4 * r,
            lambda r: 4 * torch.ones_like(r),
        ),
    )
}


def divergence(name: str) -> FDivergence:
    """The divergence of that name. Raises ``UsageError`` where there is none."""
    if name not in DIVERGENCES:
        raise UsageError(f"there is no f-divergence {name!r}; {did_you_mean(name, list(DIVERGENCES))}")
    return DIVERGENCES[name]


def sample_weights(divergence: FDivergence, r: Tensor) -> Tensor:
    """(B,) weights h(r) of mean 1 over the batch, without gradient; exactly 1 where h is constant.

    The mean is divided out with 1e-6 added to it, as in the released code of f-distill.
    """
    if divergence.constant:
        return torch.ones_like(r)
    h = divergence.h(r.detach())
    return h / (h.mean() + EPSILON)


def expanded_loss(
    divergence: FDivergence,
    x: Tensor,
    real: Tensor,
    fake: Tensor,
    r: Tensor,
    *,
    level: Tensor | None = None,
    normalize: bool = True,
) -> Tensor:
    """(B,) loss of one level of the expansion: h(r) sid_loss(1) + direct(r) <x, sg(||gap|| gap)>, gap = real - fake.

    ``r`` (B,) carries no gradient. Sums are over pixels. For reverse KL it is ``sid_loss`` of alpha 1, bit for bit.

    ``level`` (B,) = sigma / alpha asks for the second part that theorem 3.2 gives: ||gap||^2 / (2 level^2) in the place
    of ||gap||, divided by omega where the first part is. Without it this is the second part of the released code, which
    omega does not divide.
    """
    r = r.detach()
    loss = divergence.h(r) * sid_loss(x, real, fake, normalize=normalize)
    direct = divergence.direct(r)
    if not torch.any(direct):
        return loss
    gap = (real - fake).detach()
    square = per_sample(gap**2)
    size = square.sqrt() if level is None else square / (2 * level**2)
    if level is not None and normalize:
        size = size / omega(x, real)
    return loss + direct * per_sample(x * spread(size, gap) * gap)


def moved_loss(divergence: FDivergence, real: Tensor, fake: Tensor, r: Tensor) -> Tensor:
    """(B,) (h - r h')(r) ||real - fake||^2 / 2, differentiable in the predictions: the third part of the gradient.

    Score implicit matching leaves it out: there the points at which scores are compared stand still.
    """
    return divergence.moved(r.detach()) * per_sample((real - fake) ** 2) / 2
