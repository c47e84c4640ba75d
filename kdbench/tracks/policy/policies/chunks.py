"""Policies that decide a chunk of actions at a time: by regression, or by denoising."""

from __future__ import annotations

import itertools
import json
from abc import abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from kdbench.tracks.policy.blocks.ddpm import Ddpm
from kdbench.tracks.policy.policies.base import Policy

if TYPE_CHECKING:
    from kdbench.tracks.policy.task import PolicyTask
    from kdbench.tracks.policy.worlds.base import Observation


class History:
    """The last ``observed`` observations of n episodes; before the first the first is repeated."""

    def __init__(self, observed: int) -> None:
        self.observed, self._seen = observed, []

    def add(self, obs: Observation) -> Observation:
        """The window that ends with ``obs``: its vector is (n, T_o O), the oldest first."""
        self._seen = [*self._seen, obs.vector][-self.observed :]
        padded = [self._seen[0]] * (self.observed - len(self._seen)) + self._seen
        parts = {name: getattr(obs, name) for name in ("image", "text", "robot")}
        return type(obs)(torch.cat(padded, 1), **parts)


class Chunks(Policy):
    """Predicts T_p actions from T_o observations and executes T_a of them, the first being that of the newest."""

    def __init__(self, network: nn.Module, *, actions: int, horizon: int, observed: int, executed: int) -> None:
        self.network, self.actions = network, actions
        self.horizon, self.observed, self.executed = horizon, observed, executed

    def reset(self, n: int, generator: torch.Generator) -> None:
        self._generator, self._history, self._queue = generator, History(self.observed), []

    def act(self, obs: Observation) -> Tensor:
        window = self._history.add(obs)
        if not self._queue:
            chunk = self.plan(window)
            first = self.observed - 1
            self._queue = list(chunk[:, first : first + self.executed].clamp(-1, 1).unbind(1))
        return self._queue.pop(0)

    @abstractmethod
    def plan(self, window: Observation) -> Tensor:
        """(n, T_p, A) actions; the one at T_o - 1 belongs to the newest observation."""

    def noise(self, window: Observation, length: int | None = None) -> Tensor:
        """Standard normal (n, T_p, A), or of another length."""
        shape = (len(window), self.horizon if length is None else length, self.actions)
        return torch.randn(shape, generator=self._generator).to(window.vector.device)

    def networks(self) -> Mapping[str, nn.Module]:
        return {"policy": self.network}

    def settings(self) -> dict[str, Any]:
        """What beside the network the constructor needs, as JSON."""
        return {name: getattr(self, name) for name in ("actions", "horizon", "observed", "executed")}

    def save(self, folder: Path) -> None:
        save_file(
            {name: value.contiguous() for name, value in self.network.state_dict().items()},
            folder / "policy.safetensors",
        )
        (folder / "policy.json").write_text(json.dumps(self.settings()) + "\n")

    @classmethod
    def network_for(cls, task: PolicyTask, state: Mapping[str, Tensor], settings: Mapping[str, Any]) -> nn.Module:
        """The network that a saved state belongs to: the task's student."""
        return task.build_student()

    @classmethod
    def load(cls, folder: Path, task: PolicyTask) -> Chunks:
        settings = json.loads((folder / "policy.json").read_text())
        state = load_file(folder / "policy.safetensors")
        network = cls.network_for(task, state, settings)
        network.load_state_dict(state)
        return cls(task.place(network).eval(), **settings)


class Regression(Chunks):
    """The chunk is the network's answer to zeros at level 0."""

    kind = "regression"

    def plan(self, window: Observation) -> Tensor:
        device = window.vector.device
        zeros = torch.zeros(len(window), self.horizon, self.actions, device=device)
        return self.network(zeros, torch.zeros(len(window), dtype=torch.int64, device=device), window)


class Denoising(Chunks):
    """The chunk is drawn from noise: all N levels of DDPM, or fewer steps of DDIM."""

    kind = "denoising"

    def __init__(
        self, network: nn.Module, *, levels: int, steps: int, solver: Literal["ddpm", "ddim"] = "ddpm", **rest: Any
    ) -> None:
        """``levels`` N of the schedule; ``steps`` of DDIM (DDPM takes all levels)."""
        super().__init__(network, **rest)
        self.levels, self.steps, self.solver = levels, levels if solver == "ddpm" else steps, solver
        self.schedule = Ddpm(levels)

    def settings(self) -> dict[str, Any]:
        return {**super().settings(), "levels": self.levels, "steps": self.steps, "solver": self.solver}

    def plan(self, window: Observation) -> Tensor:
        x, grid = self.noise(window), self.schedule.grid(self.steps)
        for here, there in itertools.pairwise(grid):
            level = torch.full((len(window),), here, device=x.device)
            predicted = self.network(x, level, window)
            if self.solver == "ddpm":
                x = self.schedule.step(x, predicted, level, self.noise(window))
            else:
                x = self.schedule.jump(x, predicted, level, torch.full_like(level, there))
        return x
