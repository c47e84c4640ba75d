"""How sharp a minimum is: the largest eigenvalue of the Hessian, and what small changes of the weights do to the loss.

Both take a loss as a function without arguments that is the same whenever it is called: fixed data, no dropout, and
normalisation in eval mode.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import torch
from scipy.sparse.linalg import LinearOperator, eigsh
from torch import Tensor


def _split(flat: Tensor, like: Sequence[Tensor]) -> list[Tensor]:
    parts = torch.split(flat, [p.numel() for p in like])
    return [part.view_as(p) for part, p in zip(parts, like, strict=True)]


def _direction(parameters: Sequence[Tensor], generator: torch.Generator) -> Tensor:
    count = sum(p.numel() for p in parameters)
    return torch.randn(count, generator=generator, dtype=torch.float64)


def top_eigenvalue(
    loss: Callable[[], Tensor], parameters: Sequence[Tensor], generator: torch.Generator, tolerance: float = 1e-2
) -> float:
    """The largest eigenvalue (not the largest in size) of the Hessian of ``loss`` in the parameters taken together.

    By Lanczos iteration with Hessian-vector products, to a relative ``tolerance``. Needs two parameters or more.
    """
    device, dtype = parameters[0].device, parameters[0].dtype
    gradients = torch.autograd.grad(loss(), parameters, create_graph=True, materialize_grads=True)

    def product(vector: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        along = _split(torch.from_numpy(vector.ravel()).to(device, dtype), parameters)
        results = torch.autograd.grad(gradients, parameters, along, retain_graph=True, materialize_grads=True)
        flat: npt.NDArray[np.float64] = torch.cat([r.flatten() for r in results]).double().cpu().numpy()
        return flat

    start = _direction(parameters, generator).numpy()
    hessian = LinearOperator((len(start), len(start)), matvec=product, dtype=np.float64)
    return float(eigsh(hessian, 1, which="LA", v0=start, tol=tolerance, return_eigenvectors=False)[0])


@torch.no_grad()
def loss_increase(
    loss: Callable[[], Tensor],
    parameters: Sequence[Tensor],
    generator: torch.Generator,
    *,
    radius: float = 1e-2,
    draws: int = 10,
) -> float:
    """Largest change of the loss over random directions of length ``radius`` times the norm of the parameters.

    The parameters are as before afterwards, to the bit.
    """
    before, kept = float(loss()), [p.clone() for p in parameters]
    length = radius * float(torch.cat([p.flatten() for p in kept]).double().norm())
    worst = -float("inf")
    for _ in range(draws):
        direction = _direction(parameters, generator)
        step = (direction * (length / direction.norm())).to(kept[0].device, kept[0].dtype)
        for parameter, original, change in zip(parameters, kept, _split(step, parameters), strict=True):
            parameter.copy_(original + change)
        worst = max(worst, float(loss()) - before)
    for parameter, original in zip(parameters, kept, strict=True):
        parameter.copy_(original)
    return worst
