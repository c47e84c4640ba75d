"""Rows drawn from groups, such as domains of text, with weights that may change during training."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor


class Mixture(Iterator[Tensor]):
    """Rows without end, ``size`` at a time: the group of each is drawn from ``weights``, independently.

    Within a group rows come in random order, and in a new one when all were used. Everything is drawn from
    ``generator``, whose state is not part of this.
    """

    def __init__(
        self,
        groups: Sequence[Tensor],
        size: int,
        generator: torch.Generator,
        weights: Sequence[float] | Tensor | None = None,
    ) -> None:
        """``groups``: (n_g,) int64 rows of each of G groups, none empty; ``weights`` as in :meth:`reweigh`."""
        if not groups or any(len(rows) == 0 for rows in groups):
            raise ValueError("a mixture needs at least one group, and no group without rows")
        self.groups, self.size, self.generator = tuple(groups), size, generator
        self.drawn = [0] * len(groups)
        """Rows taken of each group so far."""
        self._orders = [rows[:0] for rows in groups]
        self._taken = [0] * len(groups)
        self.reweigh(torch.ones(len(groups)) if weights is None else weights)

    def reweigh(self, weights: Sequence[float] | Tensor) -> None:
        """Weights (G,) >= 0 of the groups from the next rows on; they are divided by their sum.

        Raises ``ValueError`` unless they are finite, not negative and not all 0, one for each group.
        """
        given = torch.as_tensor(weights, dtype=torch.float64, device="cpu")
        if given.shape != (len(self.groups),) or not bool(given.isfinite().all()) or bool((given < 0).any()):
            raise ValueError(f"{len(self.groups)} groups need as many finite weights of at least 0, not {weights}")
        if float(given.sum()) == 0:
            raise ValueError("at least one group needs a weight above 0")
        self.weights = given / given.sum()

    def __next__(self) -> Tensor:
        """(size,) int64 rows."""
        groups = torch.multinomial(self.weights, self.size, replacement=True, generator=self.generator)
        return torch.stack([self._row(group) for group in groups.tolist()])

    def _row(self, group: int) -> Tensor:
        if self._taken[group] == len(self._orders[group]):
            rows = self.groups[group]
            self._orders[group] = rows[torch.randperm(len(rows), generator=self.generator)]
            self._taken[group] = 0
        self._taken[group] += 1
        self.drawn[group] += 1
        return self._orders[group][self._taken[group] - 1]

    def state_dict(self) -> dict[str, Any]:
        return {
            "weights": self.weights,
            "drawn": list(self.drawn),
            "orders": list(self._orders),
            "taken": list(self._taken),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.weights = state["weights"].cpu()
        self.drawn, self._taken = list(state["drawn"]), list(state["taken"])
        self._orders = [order.cpu() for order in state["orders"]]
