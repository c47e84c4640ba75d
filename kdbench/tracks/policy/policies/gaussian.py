"""Policies that act by the mean of a Gaussian."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from kdbench.tracks.policy.networks.gaussian import GaussianMLP
from kdbench.tracks.policy.policies.base import Policy

if TYPE_CHECKING:
    from kdbench.tracks.policy.task import PolicyTask
    from kdbench.tracks.policy.worlds.base import Observation


class Gaussian(Policy):
    """The mean of a :class:`GaussianMLP`, clipped."""

    kind = "gaussian"

    def __init__(self, network: GaussianMLP, slot: int | None = None) -> None:
        """``slot``: a slot of the code that is given for every robot, as a control; None: the robot's own."""
        self.network, self.slot = network, slot

    def reset(self, n: int, generator: torch.Generator) -> None:
        """Nothing is kept between steps, and nothing is drawn."""

    def act(self, obs: Observation) -> Tensor:
        robot = obs.robot
        if self.slot is not None:
            robot = torch.full((len(obs),), self.slot, device=obs.vector.device)
        return self.network(obs.vector, robot).clamp(-1, 1)

    def networks(self) -> Mapping[str, nn.Module]:
        return {"policy": self.network}

    def save(self, folder: Path) -> None:
        state = {name: value.contiguous() for name, value in self.network.state_dict().items()}
        save_file(state, folder / "policy.safetensors")
        hidden = [layer.out_features for layer in self.network.body if isinstance(layer, nn.Linear)]
        settings: dict[str, Any] = {"hidden": hidden, "codes": self.network.codes, "slot": self.slot}
        (folder / "policy.json").write_text(json.dumps(settings) + "\n")

    @classmethod
    def load(cls, folder: Path, task: PolicyTask) -> Gaussian:
        settings, state = json.loads((folder / "policy.json").read_text()), load_file(folder / "policy.safetensors")
        actions = len(state["log_std"])
        network = GaussianMLP(len(state["mean"]), settings["hidden"], actions, settings["codes"])
        network.load_state_dict(state)
        return cls(task.place(network).eval(), settings["slot"])
