"""Networks in pieces: what comes before the blocks, the blocks, and the classifier, each to be run on its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from kdbench.errors import UsageError
from kdbench.tracks.vision.models.base import Classifier
from kdbench.tracks.vision.models.mixer import Mixer
from kdbench.tracks.vision.models.rn import ResNet
from kdbench.tracks.vision.models.vit import ViT


@dataclass
class Pieces:
    """A network as embed, blocks, finish; ``finish(run(embed(x), 0, depth))`` are its logits.

    States are (B, C, H, W) of residual networks and (B, N, D) of token networks, with the class token first where
    there is one. The network's own hooks do not run.
    """

    embed: Callable[[Tensor], Tensor]
    """Images (B, 3, P, P) to the first state."""
    blocks: list[nn.Module]
    """Stages of residual networks, blocks of the others."""
    finish: Callable[[Tensor], Tensor]
    """The last state to logits (B, C)."""

    @property
    def depth(self) -> int:
        return len(self.blocks)

    def run(self, state: Tensor, start: int, stop: int) -> Tensor:
        """The state after block ``stop`` (counted from 1) from that after block ``start``; 0: before all blocks."""
        for block in self.blocks[start:stop]:
            state = block(state)
        return state


def pieces(model: Classifier) -> Pieces:
    """A network of the track in pieces that share its weights. Raises ``UsageError`` for any other."""
    if isinstance(model, ResNet):
        return Pieces(model.stem, list(model.stages), lambda state: model.fc(torch.mean(state, dim=(2, 3))))
    if isinstance(model, ViT):

        def embed(x: Tensor) -> Tensor:
            x = model.patch(x).flatten(2).transpose(1, 2)
            return torch.cat([model.cls.expand(len(x), -1, -1), x], dim=1) + model.position

        return Pieces(embed, list(model.blocks), lambda state: model.fc(model.norm(state[:, 0])))
    if isinstance(model, Mixer):
        return Pieces(
            lambda x: model.patch(x).flatten(2).transpose(1, 2),
            list(model.blocks),
            lambda state: model.fc(model.norm(state).mean(dim=1)),
        )
    raise UsageError(f"a {type(model).__name__} cannot be split; expected a network rn(...), vit(...) or mixer(...)")


@contextmanager
def still_norms(*blocks: nn.Module) -> Iterator[None]:
    """Batch normalisation in the blocks uses its running statistics and leaves them as they are.

    For a second pass in a training step, whose inputs are not those that the network will see.
    """
    norms = [m for block in blocks for m in block.modules() if isinstance(m, nn.BatchNorm2d) and m.training]
    for norm in norms:
        norm.eval()
    try:
        yield
    finally:
        for norm in norms:
            norm.train()
