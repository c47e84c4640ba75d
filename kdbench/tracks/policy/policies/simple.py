"""The policy that looks at nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from kdbench.tracks.policy.policies.base import Policy

if TYPE_CHECKING:
    from kdbench.tracks.policy.task import PolicyTask
    from kdbench.tracks.policy.worlds.base import Observation


class RandomPolicy(Policy):
    """Every action is drawn from the uniform distribution on [-1, 1]^A."""

    kind = "random"

    def __init__(self, actions: int) -> None:
        """``actions``: A."""
        self.actions = actions

    def reset(self, n: int, generator: torch.Generator) -> None:
        self._generator = generator

    def act(self, obs: Observation) -> Tensor:
        return 2 * torch.rand(len(obs), self.actions, generator=self._generator) - 1

    def save(self, folder: Path) -> None:
        (folder / "policy.json").write_text(json.dumps({"actions": self.actions}) + "\n")

    @classmethod
    def load(cls, folder: Path, task: PolicyTask) -> RandomPolicy:
        return cls(json.loads((folder / "policy.json").read_text())["actions"])
