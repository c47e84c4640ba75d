"""Outputs of teachers on disk: arrays of equally many rows, read through memory maps, and the rows' conditions."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from torch import Tensor

from kdbench.tracks.diffusion.conditions import Condition
from kdbench.training.loaders import Order

Item = TypeVar("Item")
SHARED = ("empty", "empty_pooled")
"""Parts of a condition that all rows have in common."""


def write_rows(folder: Path, arrays: Mapping[str, Tensor], cond: Condition, **facts: Any) -> None:
    """Write ``arrays`` (N, ...) by name, the conditions of N rows, and ``facts`` (JSON values) beside them."""
    parts = {f"cond-{part.name}": getattr(cond, part.name) for part in fields(Condition) if part.name != "size"}
    found = {name: value for name, value in {**arrays, **parts}.items() if value is not None}
    for name, value in found.items():
        np.save(folder / f"{name}.npy", value.detach().cpu().numpy())
    (folder / "rows.json").write_text(json.dumps({"rows": len(cond), "arrays": sorted(found), "facts": facts}) + "\n")


class StoredRows:
    """What :func:`write_rows` wrote. Rows are copied to ``device`` when they are taken; nothing else is read."""

    def __init__(self, folder: Path, device: torch.device | str = "cpu") -> None:
        state = json.loads((folder / "rows.json").read_text())
        self.rows: int = state["rows"]
        self.facts: dict[str, Any] = state["facts"]
        self.device = device
        self._arrays = {name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in state["arrays"]}

    def __len__(self) -> int:
        return self.rows

    def shape(self, name: str) -> tuple[int, ...]:
        """Of a whole array."""
        return tuple(self._arrays[name].shape)

    def take(self, name: str, *index: Tensor) -> Tensor:
        """Rows of an array by an int64 index (B,), or by one for each of its first axes."""
        places = tuple(part.cpu().numpy() for part in index)
        return torch.from_numpy(np.array(self._arrays[name][places])).to(self.device)

    def condition(self, rows: Tensor) -> Condition:
        """Conditions of rows (B,)."""
        parts = {}
        for name, array in self._arrays.items():
            part = name.removeprefix("cond-")
            if part in SHARED:
                parts[part] = torch.from_numpy(np.array(array)).to(self.device)
            elif part != name:
                parts[part] = self.take(name, rows)
        return Condition(len(rows), **parts)


class StoredLoader(Generic[Item]):
    """Batches of stored items in a new random order each epoch; the position of an epoch can be saved."""

    def __init__(self, make: Callable[[Tensor], Item], order: Order) -> None:
        """``make(index)`` gives a batch for the places (B,) that ``order`` draws."""
        self._make, self.order = make, order

    def __len__(self) -> int:
        return len(self.order)

    def __iter__(self) -> Iterator[Item]:
        for index in self.order:
            yield self._make(index)

    def state_dict(self) -> dict[str, Any]:
        return self.order.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.order.load_state_dict(state)
