"""What ``train`` returns: networks with the way samples are drawn from them. Evaluations of networks are counted."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from kdbench.tracks.diffusion.conditions import Condition
from kdbench.training.kinds import OfKind

if TYPE_CHECKING:
    from kdbench.tracks.diffusion.task import DiffusionTask


@dataclass
class Sampled:
    """Samples, and what they cost."""

    x: Tensor
    """``(B, *shape)``."""
    nfe: float
    """Network evaluations per sample, counted: a guided step has two."""
    trajectory: list[Tensor]
    """``(B, *shape)`` states from the prior to the sample."""


MODULES = (
    "kdbench.tracks.diffusion.blocks.anysteps",
    "kdbench.tracks.diffusion.samplers",
)
"""Where the track's own kinds are; the block of a method is added where a paper has a kind there."""


class Sampler(OfKind, ABC, noun="sampler", modules=MODULES):
    """Draws samples."""

    @abstractmethod
    def draw(self, noise: Tensor, cond: Condition, generator: torch.Generator) -> tuple[Tensor, list[Tensor]]:
        """Samples ``(B, *shape)`` from standard normal ``noise`` of that shape, and the states on the way to them.

        ``generator`` gives all further noise.
        """

    def networks(self) -> Mapping[str, nn.Module]:
        """Every network that samples are drawn with: evaluations of these are counted, and so are their parameters."""
        return {}

    @abstractmethod
    def save(self, folder: Path) -> None:
        """Write what :meth:`load` reads."""

    @classmethod
    @abstractmethod
    def load(cls, folder: Path, task: DiffusionTask) -> Sampler:
        """Read what :meth:`save` wrote."""

    @torch.no_grad()
    def sample(self, noise: Tensor, cond: Condition, generator: torch.Generator) -> Sampled:
        """As :meth:`draw`, with the number of evaluations; networks are in evaluation mode meanwhile."""
        networks = list({id(network): network for network in self.networks().values()}.values())
        modes = [network.training for network in networks]
        for network in networks:
            network.eval()
        try:
            with counting(networks) as count:
                x, states = self.draw(noise, cond, generator)
        finally:
            for network, mode in zip(networks, modes, strict=True):
                network.train(mode)
        return Sampled(x, count.rows / max(1, len(noise)), states)


@dataclass
class Count:
    """Evaluated rows."""

    rows: int = 0


@contextmanager
def counting(networks: list[nn.Module]) -> Iterator[Count]:
    """Count the rows that networks are called with, inside the block."""
    count = Count()

    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        count.rows += len(args[0])

    handles = [network.register_forward_pre_hook(hook, with_kwargs=True) for network in networks]
    try:
        yield count
    finally:
        for handle in handles:
            handle.remove()
