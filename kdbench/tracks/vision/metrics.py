"""Metrics of classifiers: pure functions of logits or probabilities. Means are over samples, logarithms natural."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

BINS = 15


def accuracy(logits: Tensor, y: Tensor) -> float:
    """Share of samples whose largest logit (N, C) is at the label (N,). In [0, 1]."""
    return (logits.argmax(1) == y).double().mean().item()


def topk_accuracy(logits: Tensor, y: Tensor, k: int) -> float:
    """Share of samples whose label is among the ``k`` largest logits."""
    return (logits.topk(min(k, logits.shape[1]), dim=1).indices == y[:, None]).any(1).double().mean().item()


def class_accuracies(logits: Tensor, y: Tensor) -> Tensor:
    """(C,) accuracy on the samples of each class; NaN for classes without any."""
    correct = (logits.argmax(1) == y).double()
    count = torch.zeros(logits.shape[1], dtype=torch.float64, device=y.device)
    total = count.clone().index_add_(0, y, torch.ones_like(correct))
    return count.index_add_(0, y, correct) / total


def macro_accuracy(logits: Tensor, y: Tensor) -> float:
    """Mean over the classes that occur of the accuracy on each."""
    return class_accuracies(logits, y).nanmean().item()


def nll(logits: Tensor, y: Tensor) -> float:
    """Mean negative log-likelihood in nats."""
    return F.cross_entropy(logits.float(), y).item()


def brier(probs: Tensor, y: Tensor) -> float:
    """Mean squared distance between probabilities (N, C) and the one-hot label, summed over classes. In [0, 2].

    Brier, Monthly Weather Review 1950.
    """
    return (probs.double() - F.one_hot(y, probs.shape[1])).square().sum(1).mean().item()


def _gaps(confidence: Tensor, correct: Tensor, bins: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Per bin: share of samples, mean confidence, accuracy (0 for empty bins)."""
    size = torch.zeros(count, dtype=torch.float64, device=bins.device).index_add_(0, bins, torch.ones_like(confidence))
    conf = torch.zeros_like(size).index_add_(0, bins, confidence)
    acc = torch.zeros_like(size).index_add_(0, bins, correct)
    filled = size.clamp(min=1)
    return size / len(confidence), conf / filled, acc / filled


def reliability(probs: Tensor, y: Tensor, bins: int = BINS) -> tuple[Tensor, Tensor, Tensor]:
    """Reliability diagram: share of samples, mean confidence and accuracy of equal-width bins, each (bins,) float64.

    Confidence is the largest probability; bins are right-closed, as usual.
    """
    top, predicted = probs.double().max(1)
    which = (torch.ceil(top * bins) - 1).clamp(0, bins - 1).long()
    return _gaps(top, (predicted == y).double(), which, bins)


def ece(probs: Tensor, y: Tensor, bins: int = BINS) -> float:
    """Expected calibration error with equal-width bins (Guo et al., ICML 2017). In [0, 1]."""
    share, confidence, acc = reliability(probs, y, bins)
    return (share * (confidence - acc).abs()).sum().item()


def adaptive_ece(probs: Tensor, y: Tensor, bins: int = BINS) -> float:
    """As :func:`ece` with bins that hold equally many samples (Nguyen and O'Connor, EMNLP 2015)."""
    top, predicted = probs.double().max(1)
    which = torch.empty_like(y)
    which[top.argsort(stable=True)] = torch.arange(len(y), device=y.device) * bins // len(y)
    share, confidence, acc = _gaps(top, (predicted == y).double(), which, bins)
    return (share * (confidence - acc).abs()).sum().item()


def agreement(logits: Tensor, teacher: Tensor) -> float:
    """Share of samples for which both networks predict the same class. In [0, 1]."""
    return (logits.argmax(1) == teacher.argmax(1)).double().mean().item()


def kl_teacher(logits: Tensor, teacher: Tensor) -> float:
    """Mean KL(teacher || student) at temperature 1, in nats."""
    log_s, log_t = F.log_softmax(logits.float(), 1), F.log_softmax(teacher.float(), 1)
    return F.kl_div(log_s, log_t, reduction="batchmean", log_target=True).item()


def linear_cka(a: Tensor, b: Tensor) -> float:
    """Linear centred kernel alignment of representations (N, D1) and (N, D2) of the same samples. In [0, 1].

    Kornblith et al., ICML 2019, section 3. Invariant to orthogonal maps and isotropic scaling of either. 0 where a
    representation is constant.
    """
    a, b = (f.flatten(1).double() for f in (a, b))
    a, b = a - a.mean(0), b - b.mean(0)
    # Through the smaller of the feature and the sample dimension.
    if max(a.shape[1], b.shape[1]) > len(a):
        ka, kb = a @ a.T, b @ b.T
        cross, own = (ka * kb).sum(), ka.norm() * kb.norm()
    else:
        cross, own = (a.T @ b).square().sum(), (a.T @ a).norm() * (b.T @ b).norm()
    return (cross / own).item() if own > 0 else 0.0
