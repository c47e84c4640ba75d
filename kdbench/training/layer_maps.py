"""Which layers of a teacher each layer of a student learns from, and how much each kept pair weighs.

A loss compares every layer of a student with every layer of a teacher, (..., S, T) values for S and T of them, and a
map keeps some of them: ``slots`` values (..., K), the pairs of the first student layer first.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from kdbench.errors import UsageError

Kind = Literal["last", "skip", "all", "nearest", "random"]
Weights = Literal["fixed", "learned", "nonnegative"]


def layer_distances(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean squared difference of every pair of layers; (..., S, D), (..., T, D) to (..., S, T), float32 or wider.

    Never holds a (..., S, T, D) tensor. Gradients flow into both sides.
    """
    wide = torch.promote_types(torch.float32, torch.promote_types(student.dtype, teacher.dtype))
    if student.shape[-1] != teacher.shape[-1]:
        raise UsageError(
            f"the student's layers are {student.shape[-1]} wide and the teacher's {teacher.shape[-1]}",
            hint="map one side to the width of the other",
        )
    exact = "donot_use_mm_for_euclid_dist"
    return torch.cdist(student.to(wide), teacher.to(wide), compute_mode=exact).square() / student.shape[-1]


@dataclass(frozen=True)
class LayerMap:
    """How pairs of a student's and a teacher's layers are chosen."""

    kind: Kind
    """``last``: the last layer with the last; ``skip``: each with the one at the same relative depth, the last with
    the last; ``all``: every pair; ``nearest``: for each student layer and position the ``keep`` teacher layers at the
    smallest distance; ``random``: ``keep`` teacher layers drawn anew for each of them."""
    keep: int = 2
    """Teacher layers per student layer, of ``nearest`` and ``random``; at most all."""

    def pairs(self, students: int, teachers: int) -> list[tuple[int, int]]:
        """Pairs of layers, counted from 0, where they are the same for all positions; else ``UsageError``."""
        if students < 1 or teachers < 1:
            raise UsageError(f"a map needs layers on both sides, not {students} and {teachers}")
        if self.kind == "last":
            return [(students - 1, teachers - 1)]
        if self.kind == "skip":
            return [(s, max(0, round((s + 1) * teachers / students) - 1)) for s in range(students)]
        if self.kind == "all":
            return [(s, t) for s in range(students) for t in range(teachers)]
        raise UsageError(f"the map {self.kind!r} chooses the pairs of each position from their distances")

    def slots(self, students: int, teachers: int) -> int:
        """K: how many values are kept."""
        if self.kind in ("nearest", "random"):
            return students * min(self.keep, teachers)
        return len(self.pairs(students, teachers))

    def chosen(self, distances: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Positions (..., K) int64 in the flattened (S T) of what is kept of ``distances`` (..., S, T).

        ``nearest`` has the smallest first, ties in any order. ``random`` draws from ``generator``, which is on the CPU.
        """
        students, teachers = distances.shape[-2:]
        if self.kind in ("nearest", "random"):
            order = distances.detach()
            if self.kind == "random":
                if generator is None:
                    raise ValueError("a random map needs a generator")
                order = torch.rand(distances.shape, generator=generator).to(distances.device)
            which = order.topk(min(self.keep, teachers), dim=-1, largest=False).indices
            return (which + teachers * torch.arange(students, device=which.device)[:, None]).flatten(-2)
        flat = [s * teachers + t for s, t in self.pairs(students, teachers)]
        return torch.tensor(flat, device=distances.device).expand(*distances.shape[:-2], len(flat))

    def kept(self, distances: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Values (..., K) of ``distances`` (..., S, T) that are kept."""
        return distances.flatten(-2).gather(-1, self.chosen(distances, generator))


class SlotWeights(nn.Module):
    """Weighted sum over slots, weights 1 at first; (..., K) to (...).

    ``fixed`` ones stay. ``learned`` ones are trained along, and as the loss falls with each of them, nothing holds them
    at or above 0; ``nonnegative`` ones act as 0 below it.
    """

    def __init__(self, slots: int, weights: Weights = "fixed") -> None:
        super().__init__()
        self.weights = weights
        self.raw = nn.Parameter(torch.ones(slots), requires_grad=weights != "fixed")

    @property
    def effective(self) -> Tensor:
        """(K,) what the slots are multiplied by."""
        return self.raw.clamp(min=0) if self.weights == "nonnegative" else self.raw

    def forward(self, values: Tensor) -> Tensor:
        return (values * self.effective).sum(-1)
