"""A base policy of one robot, what is added to it for others, and one policy for all on top of its features.

The base has an encoder (observation o to state h), a head (h to action a_b) and a world model (h_t, a_t to h_{t+1}). A
residual is a copy of the head whose last layer is 0 at first: the action a_b + r(h) begins as that of the base.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from kdbench.tracks.policy.batches import Episodes
from kdbench.tracks.policy.networks.gaussian import GaussianMLP
from kdbench.tracks.policy.policies.base import Policy
from kdbench.tracks.policy.worlds.base import Observation, Step
from kdbench.training.loaders import Order

if TYPE_CHECKING:
    from kdbench.tracks.policy.task import PolicyTask

WIDTH = 64
"""Units of the hidden layers of the base."""
STD = 0.1
"""Deviation of a residual at first, and of the base as a teacher."""


class Base(nn.Module):
    """Encoder, head and world model; h is as long as an observation."""

    def __init__(self, observed: int, actions: int, width: int = WIDTH) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(observed, width), nn.ELU(), nn.Linear(width, observed), nn.ELU())
        self.head = nn.Sequential(nn.Linear(observed, width), nn.ELU(), nn.Linear(width, actions))
        self.dynamics = nn.Sequential(nn.Linear(observed + actions, width), nn.ELU(), nn.Linear(width, observed))
        self.register_buffer("mean", torch.zeros(observed))
        self.register_buffer("deviation", torch.ones(observed))

    def normalise(self, mean: Tensor, deviation: Tensor) -> None:
        """Observations are shifted and scaled by these (O,)."""
        self.mean.copy_(mean)
        self.deviation.copy_(deviation)

    def scaled(self, vector: Tensor) -> Tensor:
        """(B, O) normalised observations."""
        return (vector - self.mean) / self.deviation

    def encode(self, vector: Tensor) -> Tensor:
        """h (B, O) of observations."""
        return self.encoder(self.scaled(vector))

    def forward(self, vector: Tensor) -> tuple[Tensor, Tensor]:
        """h (B, O) and a_b (B, A)."""
        h = self.encode(vector)
        return h, self.head(h)


# --- imitation of one robot -------------------------------------------------------------------------------------------


@dataclass
class Pairs:
    """Steps with the observation that followed."""

    vector: Tensor
    after: Tensor
    """(B, O) both."""
    actions: Tensor
    """(B, A)."""

    def __len__(self) -> int:
        return len(self.vector)


class TableLoader:
    """Rows of several tensors of one length in a new random order each epoch, made into batches."""

    def __init__(
        self, make: Callable[..., Any], columns: Sequence[Tensor], size: int, generator: torch.Generator, device: Any
    ) -> None:
        """``make``: the batch of its columns."""
        self.make, self.columns = make, [column.to(device) for column in columns]
        self.order = Order(len(columns[0]), min(size, len(columns[0])), generator, device)

    def __iter__(self) -> Iterator[Any]:
        return (self.make(*(column[rows] for column in self.columns)) for rows in self.order)

    def __len__(self) -> int:
        return len(self.order)

    def state_dict(self) -> dict[str, Any]:
        return self.order.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.order.load_state_dict(state)


def pairs_of(episodes: Episodes) -> tuple[Tensor, Tensor, Tensor]:
    """Observations, those that followed, and the actions between; the last step of an episode has no pair."""
    follows = torch.arange(episodes.vector.shape[1] - 1) < episodes.length[:, None] - 1
    return episodes.vector[:, :-1][follows], episodes.vector[:, 1:][follows], episodes.actions[:, :-1][follows]


def base_losses(base: Base, batch: Pairs, foresight: float) -> dict[str, Tensor]:
    """Squared errors of the action, and of the predicted next h, which gets no gradient."""
    h, action = base(batch.vector)
    ahead = base.dynamics(torch.cat([h, batch.actions], -1))
    with torch.no_grad():
        target = base.encode(batch.after)
    return {"action": F.mse_loss(action, batch.actions), "foresight": foresight * F.mse_loss(ahead, target)}


def train_base(task: PolicyTask, *, foresight: float, spend: str) -> Base:
    """The base of the task's first robot, imitated from its demonstrations in as many steps as the task has; frozen."""
    episodes = task.demonstrations(task.robots[0])
    with task.seeded("base"):
        base = Base(episodes.vector.shape[-1], episodes.actions.shape[-1])
    base.normalise(*episodes.statistics())
    task.place(base)
    loader = TableLoader(Pairs, pairs_of(episodes), task.spec.recipe.batch_size, task.generator("data"), task.device)
    task.fit(
        base,
        lambda model, batch: base_losses(model, batch, foresight),
        loader=loader,
        steps=task.budget.steps(),
        spend=spend,
        tag="base",
    )
    return base.requires_grad_(False).eval()


# --- residuals --------------------------------------------------------------------------------------------------------


def residual_of(base: Base) -> nn.Sequential:
    """A trainable copy of the head whose last layer is 0."""
    actor = deepcopy(base.head).requires_grad_(True)
    last = actor[-1]
    assert isinstance(last, nn.Linear)
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)
    return actor


class ResidualAgent(nn.Module):
    """A residual on a frozen base, with a critic of its own that sees h and the observation."""

    def __init__(self, base: Base, critic: int = 128) -> None:
        """``critic``: units of its hidden layers."""
        super().__init__()
        self._base = [base]  # no part of what is trained
        self.actor = residual_of(base)
        actions, observed = base.head[-1].out_features, len(base.mean)
        self.log_std = nn.Parameter(torch.full((actions,), STD).log())
        self.critic = nn.Sequential(
            nn.Linear(2 * observed, critic), nn.ELU(), nn.Linear(critic, critic), nn.ELU(), nn.Linear(critic, 1)
        )

    def state(self, obs: Observation) -> Tensor:
        """(B, 2 O): h, and the normalised observation."""
        base = self._base[0]
        with torch.no_grad():
            return torch.cat([base.encode(obs.vector), base.scaled(obs.vector)], -1)

    def mean(self, state: Tensor) -> Tensor:
        """(B, A) a_b + r."""
        h = state[:, : state.shape[1] // 2]
        return self._base[0].head(h) + self.actor(h)

    def std(self) -> Tensor:
        return self.log_std.exp()

    def value(self, state: Tensor) -> Tensor:
        return self.critic(state)[:, 0]


@dataclass(frozen=True)
class MobilityReward:
    """-distance to the goal, -heading error x exp(-distance), -change and size of actions; success pays, contact costs.

    Metres and radians, from the goal in the body's frame, which observations begin with.
    """

    distance: float = 0.005
    heading: float = 0.01
    change: float = 0.001
    size: float = 0.0005
    success: float = 10.0
    contact: float = 5.0

    def __call__(self, step: Step, action: np.ndarray, before: np.ndarray) -> np.ndarray:
        goal = step.obs.vector[:, :2].cpu().numpy().astype(np.float64)
        away = np.hypot(*goal.T)
        error = np.abs(np.arctan2(goal[:, 1], goal[:, 0]))
        won = step.success & step.terminated
        return np.asarray(
            -self.distance * away
            - self.heading * error * np.exp(-away)
            - self.change * np.square(action - before).sum(-1)
            - self.size * np.square(action).sum(-1)
            + self.success * won
            - self.contact * step.contact
        )


# --- policies ---------------------------------------------------------------------------------------------------------


def _save(folder: Path, networks: Mapping[str, nn.Module], settings: Mapping[str, Any]) -> None:
    state = {
        f"{name}.{key}": value.contiguous() for name, net in networks.items() for key, value in net.state_dict().items()
    }
    save_file(state, folder / "policy.safetensors")
    (folder / "policy.json").write_text(json.dumps(dict(settings)) + "\n")


def _parts(folder: Path) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]]:
    """States by network, and the settings."""
    found: dict[str, dict[str, Tensor]] = {}
    for name, value in load_file(folder / "policy.safetensors").items():
        network, _, key = name.partition(".")
        found.setdefault(network, {})[key] = value
    return found, json.loads((folder / "policy.json").read_text())


def _base(state: Mapping[str, Tensor]) -> Base:
    base = Base(len(state["mean"]), len(state["head.2.bias"]), len(state["encoder.0.bias"]))
    base.load_state_dict(state)
    return base


class Specialists(Policy):
    """The base, plus the residual of the robot that is driven where it has one."""

    kind = "specialists"

    def __init__(self, base: Base, residuals: Mapping[int, nn.Sequential]) -> None:
        """``residuals`` by the robot's number."""
        self.base, self.residuals = base, dict(residuals)

    def reset(self, n: int, generator: torch.Generator) -> None:
        """Nothing is kept between steps, and nothing is drawn."""

    def act(self, obs: Observation) -> Tensor:
        h, action = self.base(obs.vector)
        for robot, residual in self.residuals.items():
            mine = obs.robot == robot if obs.robot is not None else torch.zeros(len(obs), dtype=torch.bool)
            if mine.any():
                action = torch.where(mine[:, None], action + residual(h), action)
        return action.clamp(-1, 1)

    def networks(self) -> Mapping[str, nn.Module]:
        return {"base": self.base, **{f"residual{robot}": actor for robot, actor in self.residuals.items()}}

    def save(self, folder: Path) -> None:
        _save(folder, self.networks(), {"robots": sorted(self.residuals)})

    @classmethod
    def load(cls, folder: Path, task: PolicyTask) -> Specialists:
        states, settings = _parts(folder)
        base = _base(states["base"])
        residuals = {robot: residual_of(base) for robot in settings["robots"]}
        for robot, residual in residuals.items():
            residual.load_state_dict(states[f"residual{robot}"])
            task.place(residual.eval())
        return cls(task.place(base.eval()), residuals)


class Latent(Policy):
    """The mean of a Gaussian of h and, where ``coded``, the robot's code."""

    kind = "latent-gaussian"

    def __init__(self, base: Base, network: GaussianMLP, *, coded: bool = True, slot: int | None = None) -> None:
        """``slot``: a slot of the code that is given for every robot, as a control; None: the robot's own."""
        self.base, self.network, self.coded, self.slot = base, network, coded, slot

    def reset(self, n: int, generator: torch.Generator) -> None:
        """Nothing is kept between steps, and nothing is drawn."""

    def act(self, obs: Observation) -> Tensor:
        robot = obs.robot if self.coded else None
        if self.slot is not None:
            robot = torch.full((len(obs),), self.slot, device=obs.vector.device)
        return self.network(self.base.encode(obs.vector), robot).clamp(-1, 1)

    def networks(self) -> Mapping[str, nn.Module]:
        return {"encoder": self.base.encoder, "policy": self.network}

    def save(self, folder: Path) -> None:
        hidden = [layer.out_features for layer in self.network.body if isinstance(layer, nn.Linear)]
        settings = {"hidden": hidden, "codes": self.network.codes, "coded": self.coded, "slot": self.slot}
        _save(folder, {"encoder": self.base, "policy": self.network}, settings)

    @classmethod
    def load(cls, folder: Path, task: PolicyTask) -> Latent:
        states, settings = _parts(folder)
        state = states["policy"]
        network = GaussianMLP(len(state["mean"]), settings["hidden"], len(state["log_std"]), settings["codes"])
        network.load_state_dict(state)
        base = task.place(_base(states["encoder"]).eval())
        return cls(base, task.place(network.eval()), coded=settings["coded"], slot=settings["slot"])
