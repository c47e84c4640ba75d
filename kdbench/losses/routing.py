"""What networks that compute conditionally are trained for beside the labels: budget, entropy and diversity of choices.

Choices are (B, T, M, N + 1): for each of B images, T tokens and M modules, one-hot, how many of N learners run (Wójcik
et al., AAAI 2025, section on end-to-end training).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def gate_labels(errors: Tensor, ratio: float) -> Tensor:
    """How many learners a token is worth, from the errors (..., N + 1) with none to all N of them; to (...,) int64.

    One more learner is worth it while it divides the error by ``ratio`` or more. The label is 0 where the first one is
    not, else 1 + the first k after which one more is not, and N where all are.
    """
    last = errors.shape[-1] - 1
    enough = errors[..., :-1] < ratio * errors[..., 1:]
    first = enough.float().argmax(-1)
    label = torch.where(first == 0, torch.zeros_like(first), first + 1)
    return torch.where(enough.any(-1), label, torch.full_like(label, last))


def _counts(choices: Tensor) -> Tensor:
    return torch.arange(choices.shape[-1], device=choices.device, dtype=choices.dtype)


def used_share(choices: Tensor, costs: Tensor) -> Tensor:
    """Mean cost of the chosen learners over the cost of all; ``costs`` (M,) of one learner of each module."""
    learners = (choices * _counts(choices)).sum(-1).mean((0, 1))
    return (learners * costs).sum() / (costs.sum() * (choices.shape[-1] - 1))


def choice_entropy(choices: Tensor) -> Tensor:
    """Entropy of each image's and module's histogram of choices over its maximum log(N + 1), mean; in [0, 1]."""
    histogram = choices.mean(1)
    entropy = -(histogram * (histogram + 1e-20).log()).sum(-1)  # the shift keeps the gradient at 0 finite
    return entropy.mean() / math.log(choices.shape[-1])


def load_diversity(choices: Tensor) -> Tensor:
    """Twice the mean distance between the loads of two images, pairs of an image with itself included.

    A load is the mean number of learners over N + 1, as in the released code.
    """
    load = (choices * _counts(choices)).mean(-1).mean((1, 2))
    return 2 * (load[:, None] - load).abs().mean()
