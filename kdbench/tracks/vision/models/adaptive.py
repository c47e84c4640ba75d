"""Networks that adapt to a domain from some of its unlabelled images, and the one of Meta-DMoE among them."""

from __future__ import annotations

from abc import abstractmethod
from copy import deepcopy

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdbench.tracks.vision.models.base import Classifier, Taps
from kdbench.training.inner import call_with, inner_step


class Adaptive(Classifier):
    """A classifier that the track lets adapt to each test domain, on its own, before it predicts that domain."""

    support: int
    """Unlabelled images of a domain that it is given."""

    @abstractmethod
    def adapted(self, support: Tensor) -> nn.Module:
        """The classifier of a domain from images (S, 3, P, P) of it; the network itself stays as it is."""


class Aggregator(nn.Module):
    """Combines the experts' features of an image, as tokens without order; (B, M, E) to (B, D) (Zhong et al. 2022).

    Tokens are projected to D, pass through pre-norm transformer layers and are averaged. The linear ``fc`` on top
    serves to train it with labels before the meta-training.
    """

    def __init__(self, d_in: int, d: int, *, heads: int, depth: int, dropout: float, num_classes: int) -> None:
        super().__init__()
        self.embed = nn.Linear(d_in, d)
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(d, heads, 2 * d, dropout, "gelu", batch_first=True, norm_first=True)
            for _ in range(depth)
        )
        self.fc = nn.Linear(d, num_classes)

    def forward(self, tokens: Tensor) -> Tensor:
        tokens = self.embed(tokens)
        for layer in self.layers:
            tokens = layer(tokens)
        return tokens.mean(1)


def without_head(student: Classifier) -> dict[str, nn.Parameter]:
    """Parameters of the feature extractor: all but those of the last linear layer, by name."""
    head = {id(parameter) for parameter in student.head().parameters()}
    return {name: parameter for name, parameter in student.named_parameters() if id(parameter) not in head}


def penult(model: Classifier, x: Tensor) -> Tensor:
    """(B, D) input of the last linear layer."""
    return model.taps(x).penult


class Mixture(Adaptive):
    """A student, the frozen experts of clusters of domains, and the aggregator of their features.

    ``mode`` says how it adapts to a domain: ``distill`` by one step of the feature extractor towards the aggregated
    features; ``none``; ``bn`` by the domain's own normalisation statistics (Schneider et al., NeurIPS 2020);
    ``entropy`` by one step of the normalisation's scales and shifts that lowers the predictions' entropy (Wang et al.,
    ICLR 2021); or not the student but the experts' mean probability (``ensemble``) or the aggregator with its own
    classifier (``aggregator``) predict.
    """

    kind = "mixture"

    def __init__(
        self,
        *,
        student: str,
        expert: str,
        experts: int,
        heads: int,
        depth: int,
        dropout: float,
        ilr: float,
        mode: str,
        support: int,
        num_classes: int,
        size: int,
    ) -> None:
        from kdbench.tracks.vision.models import build

        super().__init__()
        self.config = {
            "student": student,
            "expert": expert,
            "experts": experts,
            "heads": heads,
            "depth": depth,
            "dropout": dropout,
            "ilr": ilr,
            "mode": mode,
            "support": support,
            "num_classes": num_classes,
            "size": size,
        }
        self.num_classes, self.support, self.mode, self.ilr = num_classes, support, mode, ilr
        self.student = build(student, num_classes, size)
        self.experts = nn.ModuleList(build(expert, num_classes, size) for _ in range(experts))
        self.aggregator = Aggregator(
            self.experts[0].head().in_features,
            self.student.head().in_features,
            heads=heads,
            depth=depth,
            dropout=dropout,
            num_classes=num_classes,
        )

    def head(self) -> nn.Linear:
        return self.student.head()

    def taps(self, x: Tensor) -> Taps:
        """Those of the student, not adapted."""
        return self.student.taps(x)

    @torch.no_grad()
    def tokens(self, x: Tensor) -> Tensor:
        """(B, M, E) features of the experts, in eval mode."""
        self.experts.eval()
        return torch.stack([penult(expert, x) for expert in self.experts], 1)

    def inner_loss(self, parameters: dict[str, Tensor], x: Tensor, target: Tensor) -> Tensor:
        """Mean squared distance of the student's features (B, D), under ``parameters``, to a target."""
        return F.mse_loss(call_with(self.student, parameters, penult, x), target)

    def adapted(self, support: Tensor) -> nn.Module:
        """See the class. Runs in eval mode; gradients are on inside of it and none are left."""
        if self.mode == "ensemble":
            return _Ensemble(self.experts).eval()
        if self.mode == "aggregator":
            return _Aggregated(self).eval()
        model = deepcopy(self.student).eval()
        if self.mode == "bn":
            _own_statistics(model, support)
        elif self.mode == "entropy":
            names = {
                f"{place}.{name}"
                for place, layer in model.named_modules()
                if isinstance(layer, nn.BatchNorm2d | nn.LayerNorm)
                for name, _ in layer.named_parameters(recurse=False)
            }
            chosen = {name: value for name, value in model.named_parameters() if name in names}
            with torch.enable_grad():
                log_probs = F.log_softmax(model(support).float(), 1)
                self._move(model, chosen, -(log_probs.exp() * log_probs).sum(1).mean())
        elif self.mode == "distill":
            with torch.enable_grad():
                target = self.aggregator.eval()(self.tokens(support)).detach()
                chosen = dict(without_head(model))
                self._move(model, chosen, F.mse_loss(penult(model, support), target))
        return model

    def _move(self, model: nn.Module, parameters: dict[str, nn.Parameter], loss: Tensor) -> None:
        """One step of ``ilr`` down the loss, in place."""
        moved = inner_step(parameters, loss, self.ilr, second_order=False)
        with torch.no_grad():
            for name, parameter in parameters.items():
                parameter.copy_(moved[name])


class _Ensemble(nn.Module):
    """Log of the experts' mean probabilities."""

    def __init__(self, experts: nn.ModuleList) -> None:
        super().__init__()
        self.experts = experts

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([expert(x).float().softmax(1) for expert in self.experts]).mean(0).clamp(min=1e-12).log()


class _Aggregated(nn.Module):
    """The aggregator's own classifier."""

    def __init__(self, mixture: Mixture) -> None:
        super().__init__()
        self.mixture = mixture

    def forward(self, x: Tensor) -> Tensor:
        aggregator = self.mixture.aggregator
        return aggregator.fc(aggregator(self.mixture.tokens(x)))


@torch.no_grad()
def _own_statistics(model: nn.Module, x: Tensor) -> None:
    """Replace the running statistics of batch normalisation by those of a batch, in place; others have none."""
    layers = [layer for layer in model.modules() if isinstance(layer, nn.BatchNorm2d)]
    for layer in layers:
        layer.reset_running_stats()
        layer.momentum = None  # the plain mean over the batches since the reset
        layer.train()
    if layers:
        model(x)
    model.eval()
