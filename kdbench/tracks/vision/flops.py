"""Multiply-adds of a forward pass, in all and by module, with a say for modules that compute conditionally."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

Conditional = Callable[[nn.Module, tuple, object], float]
"""(module, positional inputs, output) -> multiply-adds that the call really needed."""


@dataclass
class Macs:
    """Multiply-adds per sample."""

    total: float
    modules: dict[str, float]
    """By qualified name, each with all it contains; the network itself is the empty name."""


def multiply_adds(
    model: nn.Module, x: Tensor, conditional: Mapping[type[nn.Module], Conditional] | None = None
) -> Macs:
    """Multiply-adds of matrix products and convolutions of one forward pass in eval mode, per sample of ``x``.

    Element-wise work, normalisation and pooling are not counted, as is usual. For modules of a class named in
    ``conditional`` the function's value for the whole batch replaces what was counted inside them, also in the
    modules around them; a module inside another conditional one is left to the outer one.
    """
    names = {module: name for name, module in model.named_modules()}
    real: dict[str, float] = {}
    hooks = []
    for module, name in names.items():
        for kind, count in (conditional or {}).items():
            if isinstance(module, kind):

                def hook(module: nn.Module, args: tuple, output: object, *, name: str = name, count=count) -> None:
                    real[name] = real.get(name, 0.0) + float(count(module, args, output))

                hooks.append(module.register_forward_hook(hook))
    was_training = model.training
    model.eval()
    try:
        # Fused attention is invisible to the counter on some devices; the plain one is made of matrix products.
        with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            model(x)
    finally:
        model.train(was_training)
        for handle in hooks:
            handle.remove()
    root = type(model).__name__
    counted = {name: sum(ops.values()) / 2 for name, ops in counter.get_flop_counts().items()}
    modules = {name: counted.get(f"{root}.{name}" if name else root, 0.0) for name in names.values()}
    outermost = [name for name in real if not any(o != name and _inside(name, o) for o in real)]
    for name in outermost:
        change = real[name] - modules[name]
        for other in modules:
            if other == name or _inside(name, other):
                modules[other] += change
    n = len(x)
    return Macs(modules[""] / n, {name: value / n for name, value in modules.items()})


def _inside(name: str, outer: str) -> bool:
    return outer == "" or name.startswith(outer + ".")
