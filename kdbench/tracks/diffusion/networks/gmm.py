"""Gaussian mixtures whose density, score and denoiser are known in closed form at every noise level.

Components are isotropic. With x_t = alpha x_0 + sigma n, component k of the mixture has mean ``alpha m_k`` and variance
``v_k = alpha^2 s_k^2 + sigma^2``; all else follows from its responsibility r_k for a point:

- score(x) = sum_k r_k (alpha m_k - x) / v_k
- E[x_0 | x] = sum_k r_k (m_k + alpha s_k^2 / v_k (x - alpha m_k))

Nothing is divided by alpha or by sigma, so that pure noise (alpha = 0) and clean points (sigma = 0) are no special
cases. Gradients flow to the points.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from kdbench.errors import JobError, UsageError
from kdbench.tracks.diffusion.conditions import Condition
from kdbench.tracks.diffusion.networks.base import Denoiser, Features
from kdbench.tracks.diffusion.processes import Process


def _column(value: float | Tensor, like: Tensor) -> Tensor:
    """A float or (B,) as (1, 1) or (B, 1), of dtype and device of ``like``."""
    return torch.as_tensor(value, dtype=like.dtype, device=like.device).reshape(-1, 1)


class Mixture(nn.Module):
    """A mixture of K isotropic Gaussians in D dimensions, whose components may belong to classes.

    Parameters are kept in float64; a call computes in the dtype of its points, which is float32 or float64. Classes
    are the tokens 1 to C; the token 0 (null), as no token at all, means the mixture as a whole. Where ``tokens`` (B,)
    int64 are given, row b is about the components of its class alone.
    """

    means: Tensor
    """(K, D)."""
    stds: Tensor
    """(K,) above 0."""
    weights: Tensor
    """(K,) that sum to 1."""
    labels: Tensor
    """(K,) int64: class of each component, from 1; 0 where there are no classes."""
    log_prior: Tensor
    """(C + 1, K): log weights of the components given a token; -inf outside of its class."""

    def __init__(
        self,
        means: Tensor | Sequence[Sequence[float]],
        stds: Tensor | Sequence[float] | float,
        weights: Tensor | Sequence[float] | None = None,
        labels: Tensor | Sequence[int] | None = None,
    ) -> None:
        """``stds`` is one number for all or (K,); ``weights`` default to equal ones and are normalised.

        Raises ``UsageError`` for shapes that do not fit, a std or weight that is not above 0, and classes that are
        not 1, 2, ..., C.
        """
        super().__init__()
        means = torch.as_tensor(means, dtype=torch.float64)
        if means.ndim != 2 or not len(means):
            raise UsageError(f"the means of a mixture have the shape (components, dimensions), not {list(means.shape)}")
        count = len(means)
        stds = torch.as_tensor(stds, dtype=torch.float64).to(means.device).expand(count).clone()
        weights = torch.as_tensor([1.0] * count if weights is None else weights, dtype=torch.float64).to(means.device)
        labels = torch.as_tensor([0] * count if labels is None else labels, dtype=torch.int64).to(means.device)
        if weights.shape != (count,) or labels.shape != (count,):
            raise UsageError(
                f"a mixture of {count} components has as many weights and labels, "
                f"not {list(weights.shape)} and {list(labels.shape)}"
            )
        if not (stds > 0).all() or not (weights > 0).all():
            raise UsageError("standard deviations and weights of a mixture are above 0")
        classes = sorted(set(labels.tolist()))
        if classes != [0] and classes != list(range(1, len(classes) + 1)):
            raise UsageError(f"classes of a mixture are 1, 2, ... without gaps, or 0 for all, not {classes}")
        tokens = torch.arange(max(classes) + 1, device=means.device)
        member = (labels == tokens[:, None]) | (tokens[:, None] == 0)
        weights = weights / weights.sum()
        prior = torch.where(member, weights, 0.0)
        for name, tensor in {
            "means": means,
            "stds": stds,
            "weights": weights,
            "labels": labels,
            "log_prior": (prior / prior.sum(1, keepdim=True)).log(),
        }.items():
            self.register_buffer(name, tensor)

    # --- what it is ---------------------------------------------------------------------------------------------------

    @property
    def dim(self) -> int:
        """Number of dimensions."""
        return self.means.shape[1]

    @property
    def classes(self) -> int:
        """Number of classes; 0 where there are none."""
        return len(self.log_prior) - 1

    @property
    def class_weights(self) -> Tensor:
        """(C,) probability of each class."""
        return torch.zeros(self.classes).to(self.weights).index_add_(0, self.labels - 1, self.weights)

    @property
    def mean(self) -> Tensor:
        """(D,) mean."""
        return self.weights @ self.means

    @property
    def std(self) -> float:
        """Root of the mean variance of a coordinate: the data std of a preconditioning."""
        variance = self.weights @ ((self.means - self.mean).square().mean(1) + self.stds.square())
        return math.sqrt(float(variance))

    def at(self, alpha: float, sigma: float) -> Mixture:
        """The mixture that alpha x_0 + sigma n has."""
        return Mixture(alpha * self.means, (alpha**2 * self.stds.square() + sigma**2).sqrt(), self.weights, self.labels)

    def of_class(self, token: int) -> Mixture:
        """The components of a class as a mixture without classes; token 0: all of them.

        Raises ``UsageError`` for a class that there is not.
        """
        if not 0 <= token <= self.classes:
            raise UsageError(f"the mixture has the classes 1 to {self.classes} and 0 for all, not {token}")
        rows = self.log_prior[token].isfinite()
        return Mixture(self.means[rows], self.stds[rows], self.weights[rows])

    # --- closed forms at a noise level --------------------------------------------------------------------------------

    def _components(
        self, x: Tensor, alpha: float | Tensor, sigma: float | Tensor, tokens: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Log of weight times density (B, K), what x has too much over the means (B, K, D), variances (B, K)."""
        if x.ndim != 2 or x.shape[1] != self.dim:
            raise UsageError(f"points of this mixture have the shape (rows, {self.dim}), not {list(x.shape)}")
        alpha, sigma = _column(alpha, x), _column(sigma, x)
        excess = x[:, None] - alpha[..., None] * self.means.to(x)
        variance = alpha.square() * self.stds.to(x).square() + sigma.square()
        prior = (self.log_prior[:1] if tokens is None else self.log_prior[tokens]).to(x)
        density = -0.5 * (excess.square().sum(2) / variance + self.dim * (2 * math.pi * variance).log())
        return prior + density, excess, variance

    def log_density(
        self, x: Tensor, alpha: float | Tensor = 1.0, sigma: float | Tensor = 0.0, tokens: Tensor | None = None
    ) -> Tensor:
        """(B,) log density, in nats, of alpha x_0 + sigma n at ``x`` (B, D); ``alpha``, ``sigma``: float or (B,)."""
        return self._components(x, alpha, sigma, tokens)[0].logsumexp(1)

    def responsibilities(
        self, x: Tensor, alpha: float | Tensor = 1.0, sigma: float | Tensor = 0.0, tokens: Tensor | None = None
    ) -> Tensor:
        """(B, K) probability of each component given the noised point."""
        return self._components(x, alpha, sigma, tokens)[0].softmax(1)

    def score(
        self, x: Tensor, alpha: float | Tensor = 1.0, sigma: float | Tensor = 0.0, tokens: Tensor | None = None
    ) -> Tensor:
        """(B, D) gradient of :meth:`log_density` with respect to ``x``."""
        joint, excess, variance = self._components(x, alpha, sigma, tokens)
        return -((joint.softmax(1) / variance)[..., None] * excess).sum(1)

    def denoise(
        self, x: Tensor, alpha: float | Tensor = 1.0, sigma: float | Tensor = 0.0, tokens: Tensor | None = None
    ) -> Tensor:
        """(B, D) posterior mean ``E[x_0 | x]``: what a denoiser without error says of ``x`` = alpha x_0 + sigma n."""
        joint, excess, variance = self._components(x, alpha, sigma, tokens)
        gain = _column(alpha, x) * self.stds.to(x).square() / variance
        return (joint.softmax(1)[..., None] * (self.means.to(x) + gain[..., None] * excess)).sum(1)

    def class_log_probabilities(self, x: Tensor, alpha: float | Tensor = 1.0, sigma: float | Tensor = 0.0) -> Tensor:
        """(B, C) log probability of each class given the noised point."""
        joint = self._components(x, alpha, sigma, None)[0].log_softmax(1)
        member = (self.labels == torch.arange(1, self.classes + 1, device=self.labels.device)[:, None]).to(x)
        return (joint[:, None] + member.log()).logsumexp(2)

    # --- tilted distributions -----------------------------------------------------------------------------------------

    def guided_log_density(
        self, x: Tensor, tokens: Tensor, w: float | Tensor, alpha: float | Tensor = 1.0, sigma: float | Tensor = 0.0
    ) -> Tensor:
        """(B,) log of ``p(x)^(1-w) p(x|c)^w``, not normalised: ``log p(x) + w (log p(c|x) - log p(c))``.

        Of the densities at this noise level: what classifier-free guidance follows there (Ho and Salimans, 2022). It is
        not the noised version of the same expression for clean points, which is why guided samplers have no density
        in closed form.
        """
        free = self.log_density(x, alpha, sigma)
        return free + torch.as_tensor(w).to(x) * (self.log_density(x, alpha, sigma, tokens) - free)

    def guided_score(
        self, x: Tensor, tokens: Tensor, w: float | Tensor, alpha: float | Tensor = 1.0, sigma: float | Tensor = 0.0
    ) -> Tensor:
        """(B, D) gradient of :meth:`guided_log_density`: ``(1 - w) score(x) + w score(x|c)``; ``w``: float or (B,)."""
        free = self.score(x, alpha, sigma)
        return free + _column(w, x) * (self.score(x, alpha, sigma, tokens) - free)

    def guided_denoise(
        self, x: Tensor, tokens: Tensor, w: float | Tensor, alpha: float | Tensor = 1.0, sigma: float | Tensor = 0.0
    ) -> Tensor:
        """(B, D) denoiser under guidance ``w``: ``E[x_0|x] + w (E[x_0|x,c] - E[x_0|x])``."""
        free = self.denoise(x, alpha, sigma)
        return free + _column(w, x) * (self.denoise(x, alpha, sigma, tokens) - free)

    def _tilted_log_weights(self, direction: Tensor, beta: float) -> tuple[Tensor, Tensor]:
        """Log weights of the tilted components (K,), not normalised, and direction / beta (D,)."""
        if direction.shape != (self.dim,) or not beta > 0:
            raise UsageError(
                f"a linear reward has {self.dim} coefficients and a beta above 0, "
                f"not {list(direction.shape)} and {beta}"
            )
        slope = direction.to(self.means) / beta
        gain = self.means @ slope + 0.5 * self.stds.square() * slope.square().sum()
        return self.weights.log() + gain, slope

    def tilted(self, direction: Tensor, beta: float = 1.0) -> Mixture:
        """The mixture ``p(x) exp(r.x / beta) / Z`` for a linear reward r.x with ``direction`` r (D,).

        It maximises ``E[r.x] - beta KL(. || p)``. Components move by ``s_k^2 r / beta`` and are weighed anew by
        ``exp(r.m_k / beta + s_k^2 |r|^2 / (2 beta^2))``. Each class of it is that class of p, tilted. Raises
        ``UsageError`` for a wrong shape or beta <= 0.
        """
        log_weights, slope = self._tilted_log_weights(direction, beta)
        means = self.means + self.stds.square()[:, None] * slope
        return Mixture(means, self.stds, log_weights.softmax(0), self.labels)

    def log_partition(self, direction: Tensor, beta: float = 1.0) -> Tensor:
        """() log Z of :meth:`tilted`: log E[exp(r.x / beta)]."""
        return self._tilted_log_weights(direction, beta)[0].logsumexp(0)

    # --- samples ------------------------------------------------------------------------------------------------------

    def sample(
        self,
        count: int,
        generator: torch.Generator,
        tokens: Tensor | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> tuple[Tensor, Tensor]:
        """``count`` points (B, D) and the components (B,) int64 that they come from, on the mixture's device.

        ``tokens`` (B,) int64 are the classes asked for, 0 for any.
        """
        tokens = torch.zeros(count, dtype=torch.int64) if tokens is None else tokens
        if tokens.shape != (count,):
            raise UsageError(f"{count} points have as many tokens, not {list(tokens.shape)}")
        prior = self.log_prior[tokens.to(self.log_prior.device)].exp()
        chosen = torch.multinomial(prior.to(generator.device), 1, generator=generator)[:, 0].to(self.means.device)
        return self.sample_components(chosen, generator, dtype), chosen

    def sample_components(
        self, chosen: Tensor, generator: torch.Generator, dtype: torch.dtype = torch.float32
    ) -> Tensor:
        """A point (B, D) of each of the components ``chosen`` (B,) int64."""
        shape = (len(chosen), self.dim)
        noise = torch.randn(shape, generator=generator, device=generator.device, dtype=torch.float64)
        return (self.means[chosen] + self.stds[chosen, None] * noise.to(self.means)).to(dtype)


class ExactDenoiser(Denoiser):
    """The denoiser of a mixture under any process: the posterior mean, without error.

    float32 or float64, as its points are. It has no feature maps, and no weights to save: it belongs to its task.
    """

    def __init__(self, mixture: Mixture, process: Process) -> None:
        super().__init__()
        self.mixture = mixture
        self.process = process
        self.shape = (mixture.dim,)
        self.channels = {}

    def denoise(self, x: Tensor, t: Tensor, cond: Condition, features: bool) -> Tensor | tuple[Tensor, Features]:
        if features:
            raise JobError("an exact denoiser has no features: take task.score_network(), which is fitted to it")
        tokens = None if cond.tokens is None else cond.tokens[:, 0]
        return self.mixture.denoise(x, self.process.alpha(t), self.process.sigma(t), tokens)
