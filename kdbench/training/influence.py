"""Influence of training samples on a validation loss, and weights from it.

For a training loss (1/N) sum_i l_i and a validation loss L the influence of sample i is the derivative of L at the
optimum by the weight of l_i (Koh and Liang, ICML 2017),

    I_i = - grad L^T (H + damping)^-1 grad l_i        I_i > 0: more of the sample is *harmful*

with H the Hessian of the training loss. l is the cross-entropy of the label. For the last linear layer on fixed
features H is that of softmax regression, and with a ridge of ``damping`` the formula is exact; for a whole network H is
the Gauss-Newton matrix, which is positive semi-definite. Leaving out sample i changes L by about -I_i / N.
Features and weights of the last layer are as in :mod:`kdbench.training.heads`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import torch
from scipy.sparse.linalg import LinearOperator, cg
from torch import Tensor, nn
from torch.func import functional_call, jvp, vjp
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from kdbench.training.heads import (
    DENSE,
    fit_head,
    head_factor,
    head_gradient,
    head_inputs,
    head_product,
    head_weights,
)

Params = dict[str, Tensor]
Call = Callable[[Params], Tensor]
Solver = Literal["exact", "kfac", "cg", "lissa"]

CHUNK = 256
"""Images per pass through a whole network."""


# --- the last linear layer --------------------------------------------------------------------------------------------


def _cg(
    product: Callable[[Tensor], Tensor], vector: Tensor, damping: float, *, iterations: int, tolerance: float
) -> Tensor:
    """(H + damping)^-1 vector by conjugate gradients, from the product with H."""

    def damped(v: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        moved = torch.from_numpy(v).to(vector).reshape(-1)
        return (product(moved) + damping * moved).cpu().numpy()

    size = len(vector)
    operator = LinearOperator((size, size), matvec=damped, dtype=vector.cpu().numpy().dtype)
    solution, _ = cg(operator, vector.cpu().numpy(), rtol=tolerance, maxiter=iterations)
    return torch.from_numpy(solution).to(vector)


def _kfac_solve(probs: Tensor, features: Tensor, damping: float, vector: Tensor) -> Tensor:
    """Inverse in the Kronecker eigenbasis with its own second moments (George et al., NeurIPS 2018); (C, E)."""
    outputs = torch.diag(probs.mean(0)) - probs.T @ probs / len(probs)
    inputs = features.T @ features / len(features)
    left, right = torch.linalg.eigh(outputs)[1], torch.linalg.eigh(inputs)[1]
    spread = probs @ left.square() - (probs @ left).square()  # variance of each direction under the prediction
    moments = spread.T @ (features @ right).square() / len(features)
    solved: Tensor = left @ ((left.T @ vector @ right) / (moments + damping)) @ right.T
    return solved


def solve_head(
    weights: Tensor, features: Tensor, damping: float, vector: Tensor, solver: Literal["exact", "kfac"] = "exact"
) -> Tensor:
    """(H + damping)^-1 times a vector (C, E) for the last layer; ``kfac`` is its eigenvalue-corrected approximation."""
    probs = F.softmax(features @ weights.T, 1)
    if solver == "kfac":
        return _kfac_solve(probs, features, damping, vector)
    if weights.numel() <= DENSE:
        solved = torch.cholesky_solve(vector.flatten()[:, None], head_factor(weights, features, damping))
        return solved.view_as(vector)

    def product(v: Tensor) -> Tensor:
        return head_product(probs, features, v.view_as(vector)).flatten()

    return _cg(product, vector.flatten(), damping, iterations=1000, tolerance=1e-8).view_as(vector)


def head_influences(direction: Tensor, weights: Tensor, features: Tensor, labels: Tensor) -> Tensor:
    """I_i (N,) of samples from the ``direction`` (H + damping)^-1 grad L (C, E)."""
    errors = F.softmax(features @ weights.T, 1) - F.one_hot(labels, len(weights))
    return -((features @ direction.T) * errors).sum(1)


# --- a whole network --------------------------------------------------------------------------------------------------


def _linearised(call: Call, params: Params) -> tuple[Tensor, Callable[[Tensor], tuple[Params]]]:
    made = vjp(call, params)
    return made[0], made[1]


def _moved(call: Call, params: Params, tangent: Params) -> tuple[Tensor, Tensor]:
    made = jvp(call, (params,), (tangent,))
    return made[0], made[1]


class Network:
    """Products with the curvature of a network in eval mode; vectors (P,) are its trainable parameters in a row."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        state = {name: tensor.detach() for name, tensor in model.state_dict(keep_vars=True).items()}
        self.names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
        self.params = {name: state[name] for name in self.names}
        self.rest = {name: tensor for name, tensor in state.items() if name not in self.params}

    def unflatten(self, vector: Tensor) -> Params:
        parts = torch.split(vector, [self.params[name].numel() for name in self.names])
        return {name: part.view_as(self.params[name]) for name, part in zip(self.names, parts, strict=True)}

    def flatten(self, values: Params) -> Tensor:
        return torch.cat([values[name].flatten() for name in self.names])

    def logits(self, x: Tensor) -> Call:
        """The logits of images as a function of the parameters."""

        def call(params: Params) -> Tensor:
            with sdpa_kernel(SDPBackend.MATH):  # the fused kernels have no forward-mode derivative
                out: Tensor = functional_call(self.model, {**params, **self.rest}, (x,))
            return out.float()

        return call

    def gradient(self, x: Tensor, labels: Tensor) -> Tensor:
        """Gradient (P,) of the mean cross-entropy."""
        total = torch.zeros(sum(p.numel() for p in self.params.values()), device=x.device)
        for part, y in zip(torch.split(x, CHUNK), torch.split(labels, CHUNK), strict=True):
            logits, back = _linearised(self.logits(part), self.params)
            total += self.flatten(back(F.softmax(logits, 1) - F.one_hot(y, logits.shape[1]))[0])
        return total / len(x)

    def product(self, x: Tensor, vector: Tensor) -> Tensor:
        """Gauss-Newton matrix of the mean cross-entropy times a vector (P,)."""
        tangent, total = self.unflatten(vector), torch.zeros_like(vector)
        for part in torch.split(x, CHUNK):
            logits, moved = _moved(self.logits(part), self.params, tangent)
            probs = F.softmax(logits, 1)
            _, back = _linearised(self.logits(part), self.params)
            total += self.flatten(back(probs * (moved - (probs * moved).sum(1, keepdim=True)))[0])
        return total / len(x)

    def along(self, x: Tensor, labels: Tensor, vector: Tensor) -> Tensor:
        """Derivative (N,) of each sample's cross-entropy along a vector (P,)."""
        tangent, each = self.unflatten(vector), []
        for part, y in zip(torch.split(x, CHUNK), torch.split(labels, CHUNK), strict=True):
            logits, moved = _moved(self.logits(part), self.params, tangent)
            each.append(((F.softmax(logits, 1) - F.one_hot(y, logits.shape[1])) * moved).sum(1))
        return torch.cat(each)


def lissa(
    network: Network, x: Tensor, vector: Tensor, damping: float, *, iterations: int, generator: torch.Generator
) -> Tensor:
    """(H + damping)^-1 vector by the stochastic Neumann series v <- b + (I - (H + damping) / s) v, with b the vector.

    Agarwal et al., JMLR 2017. s is a tenth above the largest eigenvalue of the damped curvature of the first images.
    """
    probe = torch.randn(len(vector), generator=generator).to(vector)
    for _ in range(10):
        probe = network.product(x[:CHUNK], F.normalize(probe, dim=0))
    scale = 1.1 * (float(probe.norm()) + damping)
    estimate = vector
    for _ in range(iterations):
        rows = torch.randint(len(x), (min(CHUNK, len(x)),), generator=generator).to(x.device)
        estimate = vector + estimate - (network.product(x[rows], estimate) + damping * estimate) / scale
    return estimate / scale


# --- both -------------------------------------------------------------------------------------------------------------


@torch.no_grad()
def influences(
    model: Any,
    train: tuple[Tensor, Tensor],
    val: tuple[Tensor, Tensor],
    *,
    damping: float,
    solver: Solver = "exact",
    iterations: int = 20,
    curvature: int = 500,
    generator: torch.Generator | None = None,
) -> Tensor:
    """I_i (N,) float64 of all training samples: images (N, 3, P, P) and labels (N,) in [0, C), and those of ``val``.

    ``exact`` and ``kfac``: of the last layer on all training samples. ``cg`` and ``lissa``: of the whole network, with
    the curvature of ``curvature`` training samples drawn by the ``generator``.
    """
    (x, y), (val_x, val_y) = train, val
    if solver in ("exact", "kfac"):
        weights, features = head_weights(model), head_inputs(model, x)
        gradient = head_gradient(weights, head_inputs(model, val_x), val_y)
        direction = solve_head(weights, features, damping, gradient, "kfac" if solver == "kfac" else "exact")
        return head_influences(direction, weights, features, y)
    generator = torch.Generator().manual_seed(0) if generator is None else generator
    some = x[torch.randperm(len(x), generator=generator)[:curvature].to(x.device)]
    mode = model.training
    model.eval()
    try:
        network = Network(model)
        gradient = network.gradient(val_x, val_y)
        if solver == "cg":
            direction = _cg(
                lambda v: network.product(some, v), gradient, damping, iterations=iterations, tolerance=1e-6
            )
        else:
            direction = lissa(network, some, gradient, damping, iterations=iterations, generator=generator)
        return -network.along(x, y, direction).double()
    finally:
        model.train(mode)


def leave_out_effects(
    model: Any, train: tuple[Tensor, Tensor], val: tuple[Tensor, Tensor], groups: list[Tensor], damping: float
) -> tuple[Tensor, Tensor]:
    """Predicted and actual changes (G,) of the validation loss when each group of rows is left out of the last layer's
    training: by influence at its optimum, and by fitting it again to the other samples."""
    (x, y), (val_x, val_y) = train, val
    features, val_features = head_inputs(model, x), head_inputs(model, val_x)
    weights = fit_head(head_weights(model), features, y, damping)
    direction = solve_head(weights, features, damping, head_gradient(weights, val_features, val_y))
    each = head_influences(direction, weights, features, y)
    factor = head_factor(weights, features, damping) if weights.numel() <= DENSE else None
    before = F.cross_entropy(val_features @ weights.T, val_y)
    predicted, actual = [], []
    for rows in groups:
        kept = torch.ones(len(y), dtype=torch.bool, device=y.device)
        kept[rows] = False
        # the mean is over what is left: the ridge has the weight that it had beside the sum over all samples
        again = fit_head(weights, features[kept], y[kept], damping * len(y) / int(kept.sum()), factor=factor)
        actual.append(F.cross_entropy(val_features @ again.T, val_y) - before)
        predicted.append(-each[rows].sum() / len(y))
    return torch.stack(predicted), torch.stack(actual)


def influence_weights(values: Tensor, low: float = 1.0, high: float = 99.0) -> tuple[Tensor, float]:
    """Weights (N,) float32 in [1/e, e] from influences (N,), and the share of samples that were clipped.

    -I is clipped to the percentiles ``low`` and ``high``, so that one outlier does not make all others alike, mapped
    affinely to [-1, 1], and exponentiated: helpful samples weigh more. Equal influences give weights of 1.
    """
    helpful = -values.double()
    floor, ceiling = torch.quantile(helpful, torch.tensor([low / 100, high / 100], dtype=helpful.dtype).to(helpful))
    if not bool(ceiling - floor > 1e-12 * helpful.abs().max().clamp(min=1e-300)):
        return torch.ones(len(values), device=values.device), 0.0
    clipped = float(((helpful < floor) | (helpful > ceiling)).double().mean())
    unit = 2 * (helpful.clamp(floor, ceiling) - floor) / (ceiling - floor) - 1
    return unit.exp().float(), clipped
