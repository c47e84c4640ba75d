"""Metrics of classifiers: pure functions of logits or probabilities. Means are over samples, logarithms natural."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from kdbench.losses.divergences import entropy, log_softmax

BINS = 15
TEMPERATURES = (0.05, 20.0)
"""Range in which :func:`optimal_temperature` searches."""


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


def optimal_temperature(logits: Tensor, y: Tensor) -> float:
    """The temperature by which logits (N, C) are divided for the least NLL (Guo et al., ICML 2017, section 4.2).

    Fitted on validation data. The NLL is convex in the inverse temperature, so its minimum is unique; it is searched
    between 0.05 and 20 and is at an end of that range where the logits separate or are unrelated to the labels.
    """
    from scipy.optimize import minimize_scalar

    values = logits.double()

    def loss(log_inverse: float) -> float:
        return F.cross_entropy(values * math.exp(log_inverse), y).item()

    low, high = (-math.log(t) for t in reversed(TEMPERATURES))
    found = minimize_scalar(loss, bounds=(low, high), method="bounded", options={"xatol": 1e-4})
    return math.exp(-found.x)


def mean_entropy(logits: Tensor) -> float:
    """Mean entropy of the predictions, in nats. In [0, log C]."""
    return entropy(log_softmax(logits)).mean().item()


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


def scatter(features: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Covariance within classes and covariance of the class means, each (D, D) float64; features (N, D), labels (N,).

    Means over the samples; the class means are weighted by their numbers of samples. The two add up to the covariance
    of the features.
    """
    x = features.flatten(1).double()
    _, group, count = y.unique(return_inverse=True, return_counts=True)
    means = torch.zeros(len(count), x.shape[1], dtype=x.dtype, device=x.device).index_add_(0, group, x)
    means /= count[:, None]
    inner, outer = x - means[group], (means - x.mean(0))[group]
    return inner.T @ inner / len(x), outer.T @ outer / len(x)


def class_variability(features: Tensor, y: Tensor) -> float:
    """Variability collapse NC1 = tr(S_W pinv(S_B)) / C (Papyan, Han and Donoho, PNAS 2020); 0 where classes are points.

    S_W and S_B as of :func:`scatter`, C the number of classes that occur. The pseudo-inverse has rank C - 1 at most.
    """
    within, between = scatter(features, y)
    return (torch.trace(within @ torch.linalg.pinv(between, rtol=1e-8, hermitian=True)) / len(y.unique())).item()


def scatter_ratio(features: Tensor, y: Tensor) -> float:
    """Variance within classes over variance of the class means, tr(S_W) / tr(S_B); infinite where the means agree."""
    within, between = scatter(features, y)
    return (torch.trace(within) / torch.trace(between)).item()


def norm_spread(weight: Tensor) -> float:
    """Standard deviation over mean of the norms of the class weights (C, D) of a linear head; 0 where all are equal."""
    norms = weight.detach().double().norm(dim=1)
    return (norms.std(correction=0) / norms.mean()).item()


def few_shot_accuracy(
    features: Tensor, y: Tensor, classes: tuple[int, ...], shots: int, generator: torch.Generator, episodes: int = 20
) -> float:
    """Accuracy among new ``classes`` by the nearest mean of ``shots`` features of each; mean over random episodes.

    ``features`` (N, D) with labels ``y`` (N,); nearness is the cosine (Snell et al., NeurIPS 2017, prototypes). Images
    that are no prototype are classified. At most half of the images of a class are prototypes. In [0, 1].
    """
    features = F.normalize(features.double(), dim=1)
    rows = [torch.nonzero(y == label).flatten() for label in classes]
    shots = min(shots, *(len(each) // 2 for each in rows))
    scores = []
    for _ in range(episodes):
        drawn = [each[torch.randperm(len(each), generator=generator).to(each.device)] for each in rows]
        centres = torch.stack([features[each[:shots]].mean(0) for each in drawn])
        nearest = [(features[each[shots:]] @ centres.T).argmax(1) for each in drawn]
        scores.append(sum((found == number).double().mean().item() for number, found in enumerate(nearest)))
    return sum(scores) / len(scores) / len(rows)
