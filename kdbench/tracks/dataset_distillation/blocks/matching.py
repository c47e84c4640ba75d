"""Matching of distributions and of gradients between real and synthetic images."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def class_means(features: Tensor, labels: Tensor, classes: int) -> Tensor:
    """(K, D): mean features (N, D) of each class of labels (N,); zeros for a class that is not there."""
    sums = features.new_zeros(classes, features.shape[1]).index_add(0, labels, features)
    counts = torch.bincount(labels, minlength=classes).clamp(min=1)
    return sums / counts[:, None]


def distribution_loss(real: Tensor, synthetic: Tensor) -> Tensor:
    """Sum over classes of the squared distance of mean features, (K, D) each (Zhao and Bilen, WACV 2023, equation
    5)."""
    return (real - synthetic).pow(2).sum()


def gradient_distance(real: Sequence[Tensor], synthetic: Sequence[Tensor]) -> Tensor:
    """Sum over layers and output units of 1 - cosine of their gradients (Zhao et al., ICLR 2021, equation 10).

    Each tensor is (out, ...); biases and weights of normalisation, of one axis, are left out as in the paper. A unit
    without a gradient on either side counts nothing.
    """
    total = real[0].new_zeros(())
    for one, other in zip(real, synthetic, strict=True):
        if one.dim() < 2:
            continue
        a, b = one.flatten(1), other.flatten(1)
        norms = a.norm(dim=1) * b.norm(dim=1)
        cosine = (a * b).sum(1) / norms.clamp(min=1e-6)
        total = total + ((1 - cosine) * (norms > 1e-6)).sum()
    return total
