"""Adversarial robustness of classifiers of normalised images."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdbench.tracks.vision.data import MEAN, STD

LEVELS = (2, 4, 8)
"""Usual sizes of a perturbation, in steps of 1/255."""
BATCH = 500


def fgsm(model: nn.Module, x: Tensor, y: Tensor, eps: float) -> Tensor:
    """Images moved by ``eps`` along the sign of the loss gradient (Goodfellow, Shlens and Szegedy, ICLR 2015).

    ``x`` (N, 3, P, P) are normalised images, ``y`` (N,) their labels, ``eps`` is in units of pixels in [0, 1]. Results
    are normalised images again, whose pixels stay in [0, 1]. The network is used in eval mode; its mode, gradients and
    statistics are as before afterwards.
    """
    was_training = model.training
    model.eval()
    try:
        parts = []
        for images, labels in zip(x.split(BATCH), y.split(BATCH), strict=True):
            images = images.detach().clone().requires_grad_(True)
            with torch.enable_grad():
                loss = F.cross_entropy(model(images).float(), labels, reduction="sum")
            (gradient,) = torch.autograd.grad(loss, images)
            moved = images.detach() + eps / STD * gradient.sign()
            parts.append(moved.clamp((0 - MEAN) / STD, (1 - MEAN) / STD))
        return torch.cat(parts)
    finally:
        model.train(was_training)
