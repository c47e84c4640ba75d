"""The last linear layer of a classifier as softmax regression on fixed features: Hessian, products, optimum.

Features (N, E) have a constant column where the layer has a bias; weights are (C, E), all in float64.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from scipy.optimize import minimize
from torch import Tensor
from torch.nn import functional as F

DENSE = 2000
"""Largest number of weights for which the Hessian is factorised."""


@torch.no_grad()
def head_inputs(model: Any, x: Tensor, size: int = 512) -> Tensor:
    """Inputs (N, E) of a classifier's last layer in eval mode; its mode is as before afterwards."""
    mode = model.training
    model.eval()
    try:
        features = torch.cat([model.taps(part).penult for part in torch.split(x, size)]).double()
    finally:
        model.train(mode)
    return features if model.head().bias is None else torch.cat([features, torch.ones_like(features[:, :1])], 1)


def head_weights(model: Any) -> Tensor:
    """Weights (C, E) of a classifier's last layer, the bias as their last column."""
    head = model.head()
    parts = [head.weight] if head.bias is None else [head.weight, head.bias[:, None]]
    return torch.cat(parts, 1).detach().double()


def head_gradient(weights: Tensor, features: Tensor, labels: Tensor) -> Tensor:
    """Gradient (C, E) of the mean cross-entropy of labels (N,)."""
    errors = F.softmax(features @ weights.T, 1) - F.one_hot(labels, len(weights))
    return errors.T @ features / len(features)


def head_product(probs: Tensor, features: Tensor, vector: Tensor) -> Tensor:
    """Hessian of the mean cross-entropy times a vector (C, E), from probabilities (N, C)."""
    moved = features @ vector.T
    moved = probs * (moved - (probs * moved).sum(1, keepdim=True))
    return moved.T @ features / len(features)


def head_hessian(probs: Tensor, features: Tensor) -> Tensor:
    """Hessian (C E, C E) of the mean cross-entropy, rows and columns ordered as ``weights.flatten()``."""
    classes, width = probs.shape[1], features.shape[1]
    blocks = probs.new_empty(classes, width, classes, width)
    for c in range(classes):
        curvature = probs[:, c, None] * (F.one_hot(torch.tensor(c), classes).to(probs) - probs)  # (N, C)
        for other in range(c, classes):
            block = features.T @ (curvature[:, other, None] * features) / len(features)
            blocks[c, :, other] = blocks[other, :, c] = block
    return blocks.reshape(classes * width, classes * width)


def head_factor(weights: Tensor, features: Tensor, damping: float) -> Tensor:
    """Cholesky factor of the damped Hessian at some weights."""
    hessian = head_hessian(F.softmax(features @ weights.T, 1), features)
    factor: Tensor = torch.linalg.cholesky(hessian + damping * torch.eye(len(hessian)).to(hessian))
    return factor


def fit_head(
    weights: Tensor, features: Tensor, labels: Tensor, damping: float, *, factor: Tensor | None = None
) -> Tensor:
    """Weights (C, E) that minimise the mean cross-entropy + damping / 2 |weights|^2, from a start.

    By L-BFGS in the coordinates in which the damped Hessian with the Cholesky ``factor`` is the identity; without a
    factor two of them are made on the way. Raises ``ValueError`` unless damping > 0.
    """
    if damping <= 0:
        raise ValueError(f"damping must be positive, not {damping}")
    if factor is None and weights.numel() <= DENSE:
        for _ in range(2):
            weights = fit_head(weights, features, labels, damping, factor=head_factor(weights, features, damping))
        return weights
    start = weights.flatten()

    def to_weights(u: np.ndarray[Any, Any]) -> Tensor:
        step = torch.from_numpy(u).to(start)
        if factor is not None:
            step = torch.linalg.solve_triangular(factor.T, step[:, None], upper=True)[:, 0]
        return (start + step).view_as(weights)

    def objective(u: np.ndarray[Any, Any]) -> tuple[float, np.ndarray[Any, Any]]:
        w = to_weights(u)
        loss = F.cross_entropy(features @ w.T, labels) + damping / 2 * w.square().sum()
        gradient = (head_gradient(w, features, labels) + damping * w).flatten()
        if factor is not None:
            gradient = torch.linalg.solve_triangular(factor, gradient[:, None], upper=False)[:, 0]
        return float(loss), gradient.cpu().numpy()

    options = {"maxiter": 500, "ftol": 1e-15, "gtol": 1e-9}
    found = minimize(objective, np.zeros(len(start)), jac=True, method="L-BFGS-B", options=options)
    return to_weights(found.x)
