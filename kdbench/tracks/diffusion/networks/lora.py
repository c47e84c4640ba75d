"""Low-rank adapters (LoRA; Hu et al., ICLR 2022) in linear and convolutional layers of any network.

An adapter adds ``alpha / rank * up(down(x))`` to what a layer gives; ``up`` starts at zero, so that a new adapter
changes nothing. A network may have several by name; :func:`use` says which are added, with what strength and in which
layers, and costs nothing, so that they can be swapped between two calls. With none in use, and after :func:`unmerge`,
the frozen network gives bit for bit what it gave without adapters: its own weights never change, which subtracting a
merged adapter, as peft does, does not guarantee. (Of weights that require gradients torch multiplies by other kernels:
compare frozen networks, without gradients.)
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from kdbench.errors import UsageError

Strengths = str | Iterable[str] | Mapping[str, float] | None
"""Adapters in use: one name, several, names with strengths, or none at all."""


class Adapter(nn.Module):
    """One low-rank addition to a layer."""

    def __init__(self, base: nn.Linear | nn.Conv2d, rank: int, alpha: float, generator: torch.Generator | None) -> None:
        super().__init__()
        self.rank, self.alpha = rank, alpha
        options: dict[str, Any] = {"bias": False, "device": base.weight.device, "dtype": base.weight.dtype}
        if isinstance(base, nn.Linear):
            self.down: nn.Module = nn.utils.skip_init(nn.Linear, base.in_features, rank, **options)
            self.up: nn.Module = nn.utils.skip_init(nn.Linear, rank, base.out_features, **options)
        else:
            place = {"stride": base.stride, "padding": base.padding, "dilation": base.dilation}
            place["padding_mode"] = base.padding_mode  # type: ignore[assignment]
            self.down = nn.utils.skip_init(nn.Conv2d, base.in_channels, rank, base.kernel_size, **place, **options)
            self.up = nn.utils.skip_init(nn.Conv2d, rank, base.out_channels, 1, **options)
        fan = base.weight[0].numel()
        with torch.no_grad():
            drawn = torch.rand(self.down.weight.shape, generator=generator)  # type: ignore[operator, union-attr]
            self.down.weight.copy_((2 * drawn - 1) / fan**0.5)  # type: ignore[operator, union-attr]
            nn.init.zeros_(self.up.weight)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.up(self.down(x)) * (self.alpha / self.rank)
        return out

    def change(self) -> Tensor:
        """What it adds to the layer's weight, in its shape."""
        up, down = self.up.weight, self.down.weight
        product = up.flatten(1) @ down.flatten(1)  # type: ignore[operator]
        return product.view(-1, *down.shape[1:]) * (self.alpha / self.rank)  # type: ignore[no-any-return, index, misc]


class LoraLayer(nn.Module):
    """A layer with adapters, in the place of the layer."""

    def __init__(self, base: nn.Linear | nn.Conv2d) -> None:
        super().__init__()
        self.base = base
        self.adapters = nn.ModuleDict()
        self.strengths: dict[str, float] = {}
        """Adapters in use."""
        self._kept: Tensor | None = None

    @property
    def weight(self) -> Tensor:
        """The layer's own."""
        return self.base.weight

    @property
    def bias(self) -> Tensor | None:
        return self.base.bias

    @property
    def merged(self) -> bool:
        """Whether the adapters in use are part of the weight now."""
        return self._kept is not None

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.base(x)
        if not self.merged:
            for name, strength in self.strengths.items():
                added = self.adapters[name](x)
                out = out + (added if strength == 1 else strength * added)
        return out

    def set(self, strengths: Mapping[str, float]) -> None:
        if self.merged:
            raise UsageError("adapters are merged into the weights: unmerge() before others are used")
        self.strengths = {name: float(strength) for name, strength in strengths.items() if name in self.adapters}

    @torch.no_grad()
    def merge(self) -> None:
        """Add the adapters in use to the weight, once."""
        if self.merged:
            return
        self._kept = self.base.weight.detach().clone()
        for name, strength in self.strengths.items():
            self.base.weight += strength * self.adapters[name].change()  # type: ignore[operator]

    @torch.no_grad()
    def unmerge(self) -> None:
        """The weight as it was, bit for bit."""
        if self._kept is not None:
            self.base.weight.copy_(self._kept)
            self._kept = None


def layers(network: nn.Module) -> dict[str, LoraLayer]:
    """Layers with adapters, by name."""
    return {name: module for name, module in network.named_modules() if isinstance(module, LoraLayer)}


def names(network: nn.Module) -> list[str]:
    """Adapters of a network."""
    return list(dict.fromkeys(name for layer in layers(network).values() for name in layer.adapters))


def add(
    network: nn.Module,
    name: str = "lora",
    *,
    rank: int,
    alpha: float | None = None,
    targets: str | None = None,
    generator: torch.Generator | None = None,
) -> list[str]:
    """Give a network one more adapter, which alone is in use then; the names of the layers that got it.

    ``targets`` is a regular expression that is searched for in the names of linear and convolutional layers; None: all
    of them but grouped convolutions. ``alpha`` defaults to ``rank``. ``generator`` (on the CPU; None: the global one)
    draws the first weights. All of the network but adapters is frozen. Raises ``UsageError`` for a name that is taken,
    a rank below 1, and where no layer is meant.
    """
    if rank < 1:
        raise UsageError(f"the rank of an adapter is at least 1, not {rank}")
    if name in names(network):
        raise UsageError(f"the network has an adapter {name!r} already")
    if not re.fullmatch(r"\w[\w-]*", name):
        raise UsageError(f"an adapter's name is made of letters, digits, - and _, not {name!r}")
    pattern = re.compile(targets or "")
    chosen = [layer for layer in candidates(network) if pattern.search(layer)]
    if not chosen:
        raise UsageError(f"no linear or convolutional layer matches {targets!r}")
    attach(network, name, chosen, rank, rank if alpha is None else alpha, generator)
    use(network, name)
    return chosen


def candidates(network: nn.Module) -> list[str]:
    """Names of the layers that can have adapters, as they were before any had."""
    found, inside = [], []
    for name, module in network.named_modules():
        if not name or any(name.startswith(prefix) for prefix in inside):
            continue
        if isinstance(module, LoraLayer | nn.MultiheadAttention):  # the latter reads weights without calling layers
            inside.append(f"{name}.")
        plain = isinstance(module, nn.Conv2d) and module.groups == 1
        if plain or isinstance(module, LoraLayer | nn.Linear):
            found.append(name)
    return found


def attach(
    network: nn.Module,
    name: str,
    chosen: Iterable[str],
    rank: int,
    alpha: float,
    generator: torch.Generator | None = None,
) -> None:
    """Put an adapter into the layers with these names; everything that is no adapter is frozen."""
    for path in chosen:
        layer = network.get_submodule(path)
        if not isinstance(layer, LoraLayer):
            layer = LoraLayer(layer)  # type: ignore[arg-type]
            _put(network, path, layer)
        layer.adapters[name] = Adapter(layer.base, rank, alpha, generator)
    adapters = {id(p) for layer in layers(network).values() for p in layer.adapters.parameters()}
    for parameter in network.parameters():
        if id(parameter) not in adapters:
            parameter.requires_grad_(False)


def use(network: nn.Module, strengths: Strengths, layers_like: str | None = None) -> None:
    """Say which adapters are added, with what strength (1 unless said); None: none.

    ``layers_like`` is a regular expression: only layers in whose name it is found use them, the others none. Raises
    ``UsageError`` for names that there are not, and while adapters are merged.
    """
    wanted = _strengths(strengths)
    unknown = sorted(set(wanted) - set(names(network)))
    if unknown:
        raise UsageError(f"the network has no adapter {unknown[0]!r}; it has {', '.join(names(network)) or 'none'}")
    for path, layer in layers(network).items():
        layer.set(wanted if layers_like is None or re.search(layers_like, path) else {})


def _strengths(strengths: Strengths) -> dict[str, float]:
    if strengths is None:
        return {}
    if isinstance(strengths, str):
        return {strengths: 1.0}
    return dict(strengths) if isinstance(strengths, Mapping) else dict.fromkeys(strengths, 1.0)


@contextmanager
def using(network: nn.Module, strengths: Strengths, layers_like: str | None = None) -> Iterator[None]:
    """As :func:`use`, inside the block."""
    before = used(network)
    use(network, strengths, layers_like)
    try:
        yield
    finally:
        set_used(network, before)


def train_only(network: nn.Module, *chosen: str) -> None:
    """Gradients for these adapters alone; the network and its other adapters are frozen."""
    network.requires_grad_(False)
    for layer in layers(network).values():
        for name in chosen:
            if name in layer.adapters:
                layer.adapters[name].requires_grad_(True)


def merge(network: nn.Module) -> None:
    """Make the adapters in use part of the weights, until :func:`unmerge`: calls cost no more than without."""
    for layer in layers(network).values():
        layer.merge()


def unmerge(network: nn.Module) -> None:
    """Undo :func:`merge`, exactly."""
    for layer in layers(network).values():
        layer.unmerge()


def remove(network: nn.Module, *, merged: bool) -> None:
    """Put the layers themselves back; with ``merged`` the adapters in use stay in their weights for good."""
    for path, layer in layers(network).items():
        layer.merge() if merged else layer.unmerge()
        _put(network, path, layer.base)


@contextmanager
def detached(network: nn.Module) -> Iterator[None]:
    """Inside the block the network is as it was without adapters, names of weights included.

    Raises ``UsageError`` while adapters are merged.
    """
    found = layers(network)
    if any(layer.merged for layer in found.values()):
        raise UsageError("adapters are merged into the weights: unmerge() them first")
    for path, layer in found.items():
        _put(network, path, layer.base)
    try:
        yield
    finally:
        for path, layer in found.items():
            _put(network, path, layer)


def _put(network: nn.Module, path: str, module: nn.Module) -> None:
    parent_name, _, attribute = path.rpartition(".")
    setattr(network.get_submodule(parent_name), attribute, module)


# --- adapters on disk -------------------------------------------------------------------------------------------------


def state(network: nn.Module, name: str) -> dict[str, Tensor]:
    """Weights of one adapter: ``<layer>.down.weight`` and ``<layer>.up.weight``."""
    return {
        f"{path}.{key}": tensor.detach()
        for path, layer in layers(network).items()
        if name in layer.adapters
        for key, tensor in layer.adapters[name].state_dict().items()
    }


def save(network: nn.Module, name: str, file: Path) -> None:
    """Write one adapter as safetensors. Raises ``UsageError`` where there is none of this name."""
    described = describe(network).get(name)
    if described is None:
        raise UsageError(f"the network has no adapter {name!r}")
    tensors = {key: tensor.cpu().contiguous() for key, tensor in state(network, name).items()}
    save_file(tensors, file, metadata={"adapter": json.dumps(described)})


def load(network: nn.Module, name: str, file: Path) -> None:
    """Add an adapter that :func:`save` wrote to a network with the same layers; it is frozen and not in use yet.

    Raises ``UsageError`` where the name is taken or a layer is missing.
    """
    if name in names(network):
        raise UsageError(f"the network has an adapter {name!r} already")
    with safe_open(file, framework="pt") as stored:
        described = json.loads(stored.metadata()["adapter"])
        tensors = {key: stored.get_tensor(key) for key in stored.keys()}  # noqa: SIM118 (no mapping)
    missing = sorted(set(described["layers"]) - set(candidates(network)))
    if missing:
        raise UsageError(f"the network has no layer {missing[0]!r} for the adapter of {file.name}")
    attach(network, name, described["layers"], described["rank"], described["alpha"])
    own = layers(network)
    for path in described["layers"]:
        found = {key: tensors[f"{path}.{key}"] for key in ("down.weight", "up.weight")}
        own[path].adapters[name].requires_grad_(False).load_state_dict(found)


def describe(network: nn.Module) -> dict[str, dict[str, Any]]:
    """Of each adapter its rank, alpha and layers: JSON."""
    found: dict[str, dict[str, Any]] = {}
    for path, layer in layers(network).items():
        for name, adapter in layer.adapters.items():
            entry = found.setdefault(name, {"rank": adapter.rank, "alpha": adapter.alpha, "layers": []})
            entry["layers"].append(path)
    return found


def used(network: nn.Module) -> dict[str, dict[str, float]]:
    """Adapters in use with their strengths, layer by layer: JSON."""
    return {path: dict(layer.strengths) for path, layer in layers(network).items()}


def set_used(network: nn.Module, strengths: Mapping[str, Mapping[str, float]]) -> None:
    """Use what :func:`used` gave."""
    for path, layer in layers(network).items():
        layer.set(strengths.get(path, {}))


def restore(network: nn.Module, described: Mapping[str, Mapping[str, Any]]) -> None:
    """Adapters as :func:`describe` says, with weights that are to be loaded yet."""
    for name, entry in described.items():
        attach(network, name, entry["layers"], entry["rank"], entry["alpha"])
