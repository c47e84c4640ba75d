"""Scores of untrained networks that are to foretell how well they will do; more is better.

All take a freshly initialised network and leave its parameters as they are. Those that need a batch run in train mode,
with the normalisation of the batch: the running statistics of an untrained network say nothing. They are updated on
the way.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call
from torch.overrides import TorchFunctionMode

from kdbench.errors import UsageError

RELUS = (F.relu, F.relu_, torch.relu, torch.relu_, Tensor.relu, Tensor.relu_)


class ReluCodes(TorchFunctionMode):
    """Collects which units are active after every ReLU, be it a module or a function: (B, units) float32 each."""

    def __init__(self) -> None:
        super().__init__()
        self.codes: list[Tensor] = []

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if func in RELUS:
            self.codes.append((result.detach() > 0).flatten(1).float())
        return result


@torch.no_grad()
def naswot(model: nn.Module, x: Tensor) -> float:
    """log |det K| with K_ij the number of ReLUs that agree on samples i and j (Mellor et al., ICML 2021, section 3).

    Minus infinity where two samples have the same code. Raises ``UsageError`` for networks without ReLUs.
    """
    model.train()
    with ReluCodes() as collected:
        model(x)
    if not collected.codes:
        raise UsageError(f"the score naswot counts active ReLUs, and a {type(model).__name__} has none")
    kernel = torch.zeros(len(x), len(x), dtype=torch.float64, device=x.device)
    for code in collected.codes:
        kernel += (code @ code.T + (1 - code) @ (1 - code).T).double()
    return float(torch.linalg.slogdet(kernel).logabsdet)


def grad_norm(model: nn.Module, x: Tensor, y: Tensor) -> float:
    """Sum over convolutions and linear layers of the norm of the cross-entropy's gradient in their weights.

    Abdelfattah et al., ICLR 2021, section 3.2.
    """
    model.train()
    weights = [m.weight for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    gradients = torch.autograd.grad(F.cross_entropy(model(x).float(), y), weights, allow_unused=True)
    return float(sum(float(gradient.norm()) for gradient in gradients if gradient is not None))


def synflow(model: nn.Module, shape: tuple[int, ...]) -> float:
    """sum |theta dR / dtheta|, R the summed outputs for an image of ones through the absolute values of all parameters.

    Tanaka et al., NeurIPS 2020, equation 2; in float64. Normalisation is in eval mode, where that of an untrained
    network is the identity. ``shape`` is that of one image (channels, height, width).
    """
    model.eval()
    device = next(model.parameters()).device
    parameters = {name: p.detach().abs().double().requires_grad_() for name, p in model.named_parameters()}
    buffers = {name: b.double() if b.is_floating_point() else b for name, b in model.named_buffers()}
    ones = torch.ones(1, *shape, dtype=torch.float64, device=device)
    total = functional_call(model, {**parameters, **buffers}, (ones,)).sum()
    gradients = torch.autograd.grad(total, list(parameters.values()), allow_unused=True)
    pairs = zip(parameters.values(), gradients, strict=True)
    return float(sum(float((p.detach() * g).abs().sum()) for p, g in pairs if g is not None))
