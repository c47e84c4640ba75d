"""Values, networks and random generators in the form in which checkpoints keep them, and back."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn


class Unsavable(Exception):
    """Something cannot be put into a checkpoint; the message says what and why."""


def plain(value: Any, place: str) -> Any:
    """``value`` as what ``torch.load(weights_only=True)`` reads; lists and dicts are copied. Raises ``Unsavable``."""
    if value is None or type(value) in (bool, int, float, str):
        return value
    if isinstance(value, np.float64 | np.int64 | np.bool_):
        return value.item()
    if isinstance(value, Tensor):
        tensor = value.detach()
        if tensor.layout is torch.strided and tensor.untyped_storage().nbytes() > tensor.numel() * tensor.itemsize:
            return tensor.clone()  # the file would hold everything that it is a part of
        return tensor
    if isinstance(value, dict):
        return {plain(key, place): plain(part, f"{place}[{key!r}]") for key, part in value.items()}
    if type(value) in (list, tuple):
        return type(value)(plain(part, f"{place}[{index}]") for index, part in enumerate(value))
    raise Unsavable(
        f"{place} is a {type(value).__qualname__}; tensors, numbers, strings, lists, tuples and dicts can be saved"
    )


def copied(value: Any, *, to_cpu: bool = False) -> Any:
    """A deep copy of what :func:`plain` gives; tensors on the CPU where ``to_cpu``."""
    if isinstance(value, Tensor):
        return value.cpu() if to_cpu and value.device.type != "cpu" else value.clone()
    if isinstance(value, dict):
        return {key: copied(part, to_cpu=to_cpu) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(copied(part, to_cpu=to_cpu) for part in value)
    return value


def bytes_of(value: Any) -> int:
    """Bytes of the tensors in what :func:`plain` gives."""
    if isinstance(value, Tensor):
        return value.numel() * value.itemsize
    if isinstance(value, dict):
        return sum(map(bytes_of, value.values()))
    return sum(map(bytes_of, value)) if isinstance(value, list | tuple) else 0


def network_state(network: nn.Module, place: str) -> dict[str, Any]:
    """Weights, buffers (also those that are not part of a ``state_dict``) and extra state of a network."""
    state = network.state_dict()
    hidden = {name: buffer for name, buffer in network.named_buffers() if name not in state}
    return {"state": plain(dict(state), place), "hidden": plain(hidden, place)}


@torch.no_grad()
def load_network(network: nn.Module, saved: Mapping[str, Any]) -> None:
    """Put back what :func:`network_state` gave, in place. Raises where the network is another one."""
    network.load_state_dict(saved["state"])
    buffers = dict(network.named_buffers())
    for name, value in saved["hidden"].items():
        if buffers[name].shape != value.shape:
            raise ValueError(f"the buffer {name} is {tuple(buffers[name].shape)}, saved as {tuple(value.shape)}")
        buffers[name].copy_(value)


def global_rngs(device: torch.device) -> dict[str, Any]:
    """States of the generators that everybody shares."""
    numbers = np.random.get_state(legacy=False)  # noqa: NPY002
    assert isinstance(numbers, dict)
    numbers = {**numbers, "state": {**numbers["state"], "key": numbers["state"]["key"].tolist()}}
    state = {"python": random.getstate(), "numpy": plain(numbers, "numpy"), "torch": torch.get_rng_state()}
    return state | ({"cuda": torch.cuda.get_rng_state(device)} if device.type == "cuda" else {})


def load_global_rngs(saved: Mapping[str, Any], device: torch.device) -> None:
    """Put back what :func:`global_rngs` gave."""
    random.setstate(saved["python"])
    numbers = saved["numpy"]
    key = np.array(numbers["state"]["key"], dtype=np.uint32)
    np.random.set_state({**numbers, "state": {**numbers["state"], "key": key}})  # noqa: NPY002
    torch.set_rng_state(saved["torch"])
    if device.type == "cuda":
        torch.cuda.set_rng_state(saved["cuda"], device)
