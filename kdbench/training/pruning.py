"""Unstructured magnitude pruning in stages, and what there is to measure about it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn


def stage_sparsities(final: float, stages: int) -> list[float]:
    """1 - (1 - s)^(i / n) for i = 1..n: every stage keeps the same share of what the one before it kept."""
    return [1 - (1 - final) ** (i / stages) for i in range(1, stages + 1)]


class Masks(nn.Module):
    """Which weights of some tensors of a network are kept; a module, so that checkpoints have it."""

    def __init__(self, model: nn.Module, names: Sequence[str]) -> None:
        """Everything is kept at first. ``names`` are parameters of ``model``, which is not part of this module."""
        super().__init__()
        self.names = list(names)
        for i, name in enumerate(self.names):
            shape = model.get_parameter(name).shape
            self.register_buffer(
                f"mask{i}", torch.ones(shape, dtype=torch.bool, device=model.get_parameter(name).device)
            )

    def of(self, name: str) -> Tensor:
        """The mask of one parameter, True where it is kept."""
        return self.get_buffer(f"mask{self.names.index(name)}")

    @torch.no_grad()
    def prune(self, model: nn.Module, sparsity: float) -> None:
        """Keep the share 1 - ``sparsity`` of largest magnitude over all tensors; what was dropped stays dropped."""
        magnitudes = [model.get_parameter(name).abs().masked_fill(~self.of(name), -1.0) for name in self.names]
        flat = torch.cat([each.flatten() for each in magnitudes])
        keep = torch.zeros(len(flat), dtype=torch.bool, device=flat.device)
        count = max(1, round(len(flat) * (1 - sparsity)))
        keep[flat.topk(count).indices] = True
        keep &= flat >= 0
        parts = torch.split(keep, [each.numel() for each in magnitudes])
        for name, part in zip(self.names, parts, strict=True):
            mask = self.of(name)
            mask.copy_(part.view_as(mask))
        self.apply_to(model)

    @torch.no_grad()
    def apply_to(self, model: nn.Module) -> None:
        """Set the dropped weights to 0."""
        for name in self.names:
            model.get_parameter(name).mul_(self.of(name))

    def sparsity(self, model: nn.Module) -> float:
        """Share of zeros among the weights that may be dropped, counted in the network."""
        zeros = sum(int((model.get_parameter(name) == 0).sum()) for name in self.names)
        return zeros / sum(model.get_parameter(name).numel() for name in self.names)


# --- bias and variance ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class BrierParts:
    """Expected Brier risk of networks that differ by their training sample, and its three parts."""

    risk: float
    noise: float
    bias2: float
    variance: float

    @property
    def error(self) -> float:
        """How far the parts are from summing to the risk: rounding alone."""
        return abs(self.noise + self.bias2 + self.variance - self.risk)


def brier_parts(probs: Tensor, truth: Tensor) -> BrierParts:
    """Exact decomposition of E ||p - y||^2 over networks and labels; (R, N, C) and (N, C) to means over the samples.

    ``truth`` is the distribution of the label y given the input, one-hot where it is certain (no noise then). The
    variance is over the R networks themselves, with R in its denominator, so that the parts sum to the risk.
    """
    probs, truth = probs.double(), truth.double()
    squares = probs.square().sum(-1)[..., None] - 2 * probs + 1  # ||p - e_k||^2 for each label k
    risk = (squares * truth).sum(-1).mean()
    mean = probs.mean(0)
    noise = (1 - truth.square().sum(-1)).mean()
    bias2 = (mean - truth).square().sum(-1).mean()
    variance = (probs - mean).square().sum(-1).mean()
    return BrierParts(float(risk), float(noise), float(bias2), float(variance))


# --- the rate of many small stages ------------------------------------------------------------------------------------


def staged_path(target: np.ndarray, matrix: np.ndarray, keep: float, stages: int, time: float = 1.0) -> np.ndarray:
    """The end of a path of logits that is projected onto sparse vectors after each of ``stages`` equal steps.

    Logits (d,) start at ``target`` and follow the flow z' = -matrix (z - target / 2), of a quadratic loss with a
    symmetric positive matrix (d, d), for ``time`` in all. After stage i the round(d keep^(i/n)) largest magnitudes are
    kept, and what was dropped stays 0.
    """
    z, alive = target.copy(), np.ones(len(target), dtype=bool)
    for i in range(1, stages + 1):
        z = z - (time / stages) * (matrix @ (z - target / 2))
        count = max(1, round(len(z) * keep ** (i / stages)))
        order = np.argsort(-np.where(alive, np.abs(z), -1.0), kind="stable")
        alive = np.zeros_like(alive)
        alive[order[:count]] = True
        z = np.where(alive, z, 0.0)
    return z


def convergence_rate(sizes: Sequence[int], errors: Sequence[float]) -> float:
    """r of errors ~ sizes^-r, by least squares on logarithms."""
    return -float(np.polyfit(np.log(sizes), np.log(errors), 1)[0])


def staged_path_rate(rng: np.random.Generator, instances: int = 5, size: int = 32, keep: float = 0.2) -> float:
    """Median over random instances of the rate at which :func:`staged_path` converges in the number of stages."""
    rates = []
    for _ in range(instances):
        root = rng.normal(size=(size, size))
        matrix = root @ root.T / size + 0.1 * np.eye(size)
        target = rng.choice([-1.0, 1.0], size) * np.exp(1.5 * rng.normal(size=size))
        limit, counts = staged_path(target, matrix, keep, 2048), [8, 16, 32, 64]
        errors = [float(np.linalg.norm(staged_path(target, matrix, keep, n) - limit)) for n in counts]
        rates.append(convergence_rate(counts, errors))
    return float(np.median(rates))
