"""A network as a function of one vector of weights, so that updates of the weights are differentiable."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class FlatNetwork:
    """Calls a network with weights from a vector (P,); the network itself is never changed.

    Networks with running statistics are refused: these would change from call to call. Raises ``ValueError``.
    """

    def __init__(self, network: nn.Module) -> None:
        if list(network.buffers()):
            raise ValueError(
                f"{type(network).__name__} keeps statistics: take convnet(D,W,instance) or convnet(D,W,none)"
            )
        self.network = network
        self.shapes = {name: p.shape for name, p in network.named_parameters()}
        self.sizes = [p.numel() for p in network.parameters()]
        self.kernels = [name for name, shape in self.shapes.items() if len(shape) == 4]
        """Names of the convolutions' weights."""

    def vector(self, network: nn.Module | None = None) -> Tensor:
        """(P,): the weights of a network of the same form, the wrapped one by default; a copy."""
        source = self.network if network is None else network
        return torch.cat([p.detach().flatten() for p in source.parameters()])

    def parts(self, theta: Tensor) -> dict[str, Tensor]:
        """The vector (P,) as named tensors that share its memory."""
        pieces = theta.split(self.sizes)
        return {name: piece.view(shape) for (name, shape), piece in zip(self.shapes.items(), pieces, strict=True)}

    def joined(self, parts: dict[str, Tensor]) -> Tensor:
        """What :meth:`parts` has taken apart, (P,)."""
        return torch.cat([parts[name].flatten() for name in self.shapes])

    def __call__(self, theta: Tensor, x: Tensor) -> Tensor:
        """Logits (B, K) of images (B, C, H, W) with the weights ``theta`` (P,)."""
        logits: Tensor = torch.func.functional_call(self.network, self.parts(theta), (x,))
        return logits


Loss = Callable[[Tensor, Tensor], Tensor]


def unroll(
    network: FlatNetwork,
    theta: Tensor,
    batches: Iterable[tuple[Tensor, Tensor]],
    lr: Tensor | float,
    *,
    momentum: float = 0.0,
    factor: float = 1.0,
    loss: Loss = F.cross_entropy,
    create_graph: bool = True,
) -> list[Tensor]:
    """Weights (P,) after each step of SGD from ``theta``: v <- momentum v + factor grad L, theta <- theta - lr v.

    ``batches`` are images and labels, one pair a step. With ``create_graph`` the result has gradients in images and in
    ``lr`` through all steps. The first item is the one after the first step.
    """
    theta = theta.detach().requires_grad_(True) if not theta.requires_grad else theta
    velocity: Tensor | None = None
    reached = []
    for x, y in batches:
        value = factor * loss(network(theta, x).float(), y)
        (gradient,) = torch.autograd.grad(value, theta, create_graph=create_graph)
        velocity = gradient if velocity is None else momentum * velocity + gradient
        theta = theta - lr * velocity
        reached.append(theta)
    return reached
