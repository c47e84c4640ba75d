"""Losses on class logits: pure functions of (B, C) student and teacher logits.

Every function computes in float32 (float64 stays float64) whatever the precision of its inputs, takes the teacher as
a constant, and returns a scalar averaged over the batch unless it says otherwise. B is the batch, C the number of
classes.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdbench.losses.divergences import fkl, log_softmax

UNLABELLED = -1
"""Label of samples whose class is not known to the method."""


def widen(values: Tensor) -> Tensor:
    """``values`` in float32, or in float64 where they are already."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def cross_entropy(logits: Tensor, labels: Tensor, *, smoothing: float = 0.0) -> Tensor:
    """Mean cross-entropy over the labelled samples, 0 where the batch has none.

    ``labels`` (B,) int64 with -1 for unlabelled samples; ``smoothing`` in [0, 1) mixes the one-hot target with the
    uniform distribution.
    """
    total = F.cross_entropy(widen(logits), labels, ignore_index=UNLABELLED, label_smoothing=smoothing, reduction="sum")
    return total / (labels != UNLABELLED).sum().clamp(min=1)


def hard_labels(labels: Tensor, teacher: Tensor) -> Tensor:
    """The labels, with the teacher's prediction where a sample is unlabelled; (B,), (B, C) to (B,) in [0, C)."""
    return torch.where(labels == UNLABELLED, teacher.argmax(-1), labels)


def kd_kl(student: Tensor, teacher: Tensor, temperature: float | Tensor = 1.0) -> Tensor:
    """T^2 KL(softmax(teacher / T) || softmax(student / T)), averaged over the batch (Hinton et al. 2015, section 2).

    The factor T^2 keeps the size of the gradient independent of the temperature to first order. A temperature that is
    a scalar tensor gets a gradient.
    """
    return fkl(student, teacher, temperature=temperature, scale_t2=True).mean()


def zscore(logits: Tensor, eps: float = 1e-7) -> Tensor:
    """Logits of each sample with mean 0 and standard deviation 1 over the classes; (B, C) to (B, C).

    The sample standard deviation has C - 1 in its denominator (Sun et al., CVPR 2024, algorithm 1).
    """
    logits = widen(logits)
    return (logits - logits.mean(-1, keepdim=True)) / (eps + logits.std(-1, keepdim=True))


def dkd(
    student: Tensor, teacher: Tensor, labels: Tensor, *, alpha: float = 1.0, beta: float = 8.0, temperature: float = 4.0
) -> Tensor:
    """Decoupled distillation (Zhao et al., CVPR 2022, equation 7): alpha TCKD + beta NCKD, both times T^2.

    TCKD is the divergence of the distributions over {target class, all other classes}; NCKD that of the distributions
    renormalised over the other classes. With beta replaced by the teacher's probability of the other classes the sum
    is the ordinary :func:`kd_kl`. ``labels`` (B,) in [0, C).
    """
    t = temperature
    log_student, log_teacher = log_softmax(student, t), log_softmax(teacher.detach(), t)
    target = F.one_hot(labels, student.shape[-1]).bool()

    def binary(log_probs: Tensor) -> Tensor:
        others = log_probs.masked_fill(target, -torch.inf).logsumexp(-1)
        return torch.stack([log_probs[target], others], -1)

    def others(log_probs: Tensor) -> Tensor:
        rest = log_probs[~target].view(len(log_probs), -1)
        return rest - rest.logsumexp(-1, keepdim=True)

    tckd = F.kl_div(binary(log_student), binary(log_teacher), reduction="batchmean", log_target=True)
    nckd = F.kl_div(others(log_student), others(log_teacher), reduction="batchmean", log_target=True)
    return t**2 * (alpha * tckd + beta * nckd)


def pearson(a: Tensor, b: Tensor, eps: float = 1e-8) -> Tensor:
    """Pearson correlation along the last dimension; (..., D), (..., D) to (...)."""
    return F.cosine_similarity(a - a.mean(-1, keepdim=True), b - b.mean(-1, keepdim=True), dim=-1, eps=eps)


def dist(
    student: Tensor, teacher: Tensor, *, beta: float = 2.0, gamma: float = 2.0, temperature: float = 1.0
) -> Tensor:
    """DIST (Huang et al., NeurIPS 2022, equations 8 to 10): correlations in place of a divergence, times T^2.

    ``beta`` weighs 1 - correlation over the classes of each sample, ``gamma`` 1 - correlation over the samples of the
    batch for each class.
    """
    p = log_softmax(student, temperature).exp()
    q = log_softmax(teacher.detach(), temperature).exp()
    inter, intra = 1 - pearson(p, q).mean(), 1 - pearson(p.T, q.T).mean()
    return temperature**2 * (beta * inter + gamma * intra)


def correlation_gap(student: Tensor, teacher: Tensor, temperature: float, level: str) -> Tensor:
    """Squared distance of Gram matrices of softened probabilities (Jin et al., CVPR 2023, section 3), times C / B^2.

    ``level="batch"``: of the (B, B) matrices P P^T; ``level="class"``: of the (C, C) matrices P^T P. The paper divides
    by B and by C, which differs from this by the constants C / B and C^2 / B^2, near 1 where it was used (B = 64,
    C = 100); with the common factor the size of both does not depend on the numbers of samples and classes.
    """
    classes_per_pair = student.shape[1] / len(student) ** 2
    p = log_softmax(student, temperature).exp()
    q = log_softmax(teacher.detach(), temperature).exp()
    if level == "class":
        p, q = p.T, q.T
    return classes_per_pair * (p @ p.T - q @ q.T).square().sum()


def ofa(student: Tensor, teacher: Tensor, labels: Tensor, *, eps: float = 1.0, temperature: float = 1.0) -> Tensor:
    """Target-enhanced distillation loss of One-for-All (Hao et al., NeurIPS 2023, equation 5); no factor T^2.

    It is -sum_k [(p_k + m_k)^eps - m_k] log s_k with p, s the softened teacher and student and m the one-hot label.
    ``eps = 1`` is the cross-entropy to the teacher; above 1 the target's weight (1 + p_y)^eps - 1 grows with the
    teacher's confidence while the other classes fade. ``labels`` (B,) in [0, C), -1 for m = 0.
    """
    p = log_softmax(teacher.detach(), temperature).exp()
    log_student = log_softmax(student, temperature)
    one_hot = F.one_hot(labels.clamp(min=0), p.shape[-1]) * (labels != UNLABELLED).unsqueeze(-1)
    weights = (p + one_hot) ** eps - one_hot
    return -(weights * log_student).sum(-1).mean()


def binary_kl(
    student: Tensor, teacher: Tensor, *, temperature: float = 2.0, norm: bool = True, eps: float = 1e-8
) -> Tensor:
    """Logit-level loss of dual-head distillation (Yang et al., 2024): summed over classes, averaged, times T^2.

    ``norm``: KL of (1/2, 1/2) to (sigma(d), 1 - sigma(d)) with d = (s - t) / T, which is 0 only at s = t and whose
    slope in each logit is T (sigma(d) - 1/2), at most T / 2 in size. Without it: KL of (sigma(t / T), 1 - sigma(t / T))
    to (sigma(s / T), 1 - sigma(s / T)). Sigmas are clamped to [eps, 1 - eps], beyond which there is no gradient.
    """
    limit = math.log((1 - eps) / eps)  # where sigma is 1 - eps, which float32 cannot tell from 1

    def log_sigmoids(values: Tensor) -> tuple[Tensor, Tensor]:
        values = (widen(values) / temperature).clamp(-limit, limit)
        return F.logsigmoid(values), F.logsigmoid(-values)

    teacher = teacher.detach()
    if norm:
        yes, no = log_sigmoids(student - teacher)
        divergence = -math.log(2) - (yes + no) / 2
    else:
        yes, no = log_sigmoids(student)
        log_p, log_rest = log_sigmoids(teacher)
        divergence = log_p.exp() * (log_p - yes) + log_rest.exp() * (log_rest - no)
    return temperature**2 * divergence.sum(-1).mean()


def mean_probability_logits(members: list[Tensor]) -> Tensor:
    """Log of the mean of the members' probabilities: the logits of an ensemble; K tensors (B, C) to (B, C)."""
    stacked = torch.stack([log_softmax(member) for member in members])
    return stacked.logsumexp(0) - math.log(len(members))


class ReverseGradient(torch.autograd.Function):
    """Identity forward; the gradient times ``-scale`` backward (Ganin and Lempitsky, ICML 2015, section 3)."""

    @staticmethod
    def forward(ctx, value: Tensor, scale: float) -> Tensor:  # type: ignore[no-untyped-def]
        ctx.scale = scale
        return value.view_as(value)

    @staticmethod
    def backward(ctx, *gradients: Tensor) -> tuple[Tensor, None]:  # type: ignore[no-untyped-def]
        return -ctx.scale * gradients[0], None


class LearnedTemperature(nn.Module):
    """One learned temperature that *maximises* the loss it is used in (CTKD: Li et al., AAAI 2023, equations 4 and 7).

    T = low + span * sigmoid(theta), with theta = 0 at the start. ``scale`` of the reversed gradient is raised during
    training from 0 to its full value by the caller, so that the task becomes harder gradually.
    """

    def __init__(self, low: float = 1.0, span: float = 20.0) -> None:
        super().__init__()
        self.low, self.span = low, span
        self.theta = nn.Parameter(torch.zeros(()))

    def forward(self, scale: float) -> Tensor:
        """The temperature, a scalar tensor in (low, low + span)."""
        reversed_theta: Tensor = ReverseGradient.apply(self.theta, scale)  # type: ignore[no-untyped-call]
        return self.low + self.span * torch.sigmoid(reversed_theta)
