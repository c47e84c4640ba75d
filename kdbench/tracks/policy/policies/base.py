"""What ``train`` returns: something that can be evaluated in the task's world, saved and loaded."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from kdbench.training.kinds import OfKind

if TYPE_CHECKING:
    from kdbench.tracks.policy.task import PolicyTask
    from kdbench.tracks.policy.worlds.base import Observation, World

MODULES = (
    "kdbench.tracks.policy.blocks.conservative",
    "kdbench.tracks.policy.blocks.controllable",
    "kdbench.tracks.policy.blocks.residual",
    "kdbench.tracks.policy.policies",
    "kdbench.tracks.policy.worlds.desk_expert",
    "kdbench.tracks.policy.worlds.gym",
    "kdbench.tracks.policy.worlds.nav_expert",
)
"""Modules with the kinds of what can be saved."""


class Learned(OfKind, ABC, noun="policy", modules=MODULES):
    """The result of a method."""

    @abstractmethod
    def save(self, folder: Path) -> None:
        """Write what :meth:`load` reads."""

    @classmethod
    @abstractmethod
    def load(cls, folder: Path, task: PolicyTask) -> Learned:
        """Read what :meth:`save` wrote."""


class Policy(Learned):
    """Acts in a simulator, for a batch of episodes that begin together."""

    @abstractmethod
    def reset(self, n: int, generator: torch.Generator) -> None:
        """``n`` new episodes begin: histories and buffers are forgotten. All noise comes from ``generator`` (CPU)."""

    @abstractmethod
    def act(self, obs: Observation) -> Tensor:
        """(n, A) float32 actions in [-1, 1] for the newest observation; called once a step, for all n rows."""

    def networks(self) -> Mapping[str, nn.Module]:
        """Every network that actions are computed with: their evaluations and parameters are counted."""
        return {}


class Privileged(Policy):
    """A scripted expert: sees the state of the world, not the observation alone."""

    def bind(self, world: World) -> None:
        """The world that it acts in from the next :meth:`reset` on."""
        self.world = world
