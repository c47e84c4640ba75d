"""Modules of one network between blocks of another: what is trained in the place of a part of a frozen network."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn

from kdbench.errors import UsageError
from kdbench.tracks.vision.models.base import Classifier
from kdbench.tracks.vision.models.moe import Modular, Record, stitching
from kdbench.tracks.vision.models.split import Pieces, pieces


def cut(depth: int, modules: int) -> list[tuple[int, int]]:
    """First and one past the last block of each of ``modules`` contiguous parts, as equal in size as can be.

    Raises ``UsageError`` where there are fewer blocks than modules.
    """
    if depth < modules:
        raise UsageError(f"modules is {modules}; expected at most {depth}, the blocks of the teacher")
    return list(pairwise(round(depth * number / modules) for number in range(modules + 1)))


class Section(nn.Module):
    """Blocks ``start`` to ``stop`` of a network: its embedding before the first, its classifier after the last.

    Takes images where ``start`` is 0 and gives logits where ``stop`` is the depth, states otherwise. Its parameters are
    those of the blocks alone.
    """

    def __init__(self, network: Classifier, start: int, stop: int) -> None:
        super().__init__()
        self.network, self.start, self.stop = pieces(network), start, stop
        self.blocks = nn.ModuleList(self.network.blocks[start:stop])

    def forward(self, state: Tensor) -> Tensor:
        state = self.network.embed(state) if self.start == 0 else state
        state = self.network.run(state, self.start, self.stop)
        return self.network.finish(state) if self.stop == self.network.depth else state


class StitchedPart(nn.Module):
    """Module ``number`` of a modular network between stitches from and to ``width``.

    The first has no stitch before it but the network's embedding, the last none after it but its classifier. Its
    parameters are those of the whole network; :meth:`Modular.part_parameters` are those that it uses.
    """

    def __init__(self, student: Modular, number: int, width: int) -> None:
        super().__init__()
        self.student, self.number, self.last = student, number, number == len(student.parts) - 1
        own = student.position.shape[2]
        self.enter = stitching(width, own) if number else None
        self.leave = None if self.last else stitching(own, width)

    def forward(self, state: Tensor, record: Record | None = None) -> Tensor:
        state = self.student.embed(state) if self.enter is None else self.enter(state)
        state = self.student.run_part(self.number, state, record)
        return self.student.finish(state) if self.leave is None else self.leave(state)


@torch.no_grad()
def prefix(meta: Pieces, number: int, x: Tensor) -> Tensor:
    """What module ``number`` of a hybrid gets: the images, or the state of the meta model before its own block."""
    return meta.run(meta.embed(x), 0, number) if number else x


def suffix(meta: Pieces, number: int, state: Tensor) -> Tensor:
    """Logits of a hybrid from what module ``number`` gave: through the meta model's later blocks and its classifier.

    What the last module gave are logits already.
    """
    return state if number == meta.depth - 1 else meta.finish(meta.run(state, number + 1, meta.depth))
