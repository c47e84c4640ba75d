"""One gradient step as a function: updates that later gradients go through, for meta-learning and adaptation."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn


class _Called(nn.Module):
    """A module whose call is another function of it."""

    def __init__(self, module: nn.Module, function: Callable[[Any, Tensor], Any]) -> None:
        super().__init__()
        self.module = module
        self.function = function

    def forward(self, x: Tensor) -> Any:
        return self.function(self.module, x)


def call_with(
    module: nn.Module,
    parameters: Mapping[str, Tensor],
    function: Callable[[Any, Tensor], Any],
    x: Tensor,
) -> Any:
    """``function(module, x)`` with some parameters of the module replaced; the module itself stays as it is.

    ``parameters`` are named as by ``module.named_parameters()``. Gradients reach the tensors given.
    """
    replaced = {f"module.{name}": value for name, value in parameters.items()}
    return torch.func.functional_call(_Called(module, function), replaced, (x,))


def inner_step(
    parameters: Mapping[str, Tensor], loss: Tensor, lr: float, *, second_order: bool = True
) -> dict[str, Tensor]:
    """theta - lr grad L(theta) for each named parameter; those that the loss does not depend on stay as they are.

    With ``second_order`` the gradient keeps its graph, so that a loss of the result has gradients through it, also to
    what else ``loss`` depends on. Without, the gradient counts as a constant (first-order MAML; Finn et al., ICML 2017,
    section 5.2).
    """
    gradients = torch.autograd.grad(loss, list(parameters.values()), create_graph=second_order, allow_unused=True)
    return {
        name: value if gradient is None else value - lr * gradient
        for (name, value), gradient in zip(parameters.items(), gradients, strict=True)
    }
