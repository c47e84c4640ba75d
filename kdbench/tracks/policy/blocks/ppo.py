"""Proximal policy optimisation (Schulman et al., 2017) in the track's worlds, for Gaussian policies.

Advantages are those of Schulman et al. (ICLR 2016): with d_t = r_t + gamma V(s_{t+1}) - V(s_t),

    A_t = d_t + gamma lambda A_{t+1}

where V(s_{t+1}) is 0 after a terminal step only: at a time limit the process would go on, and the value of the state
that was reached counts. The sum ends at either. The loss is the clipped ratio of likelihoods, the squared error of the
values and an entropy bonus; the learning rate follows the divergence from the policy that collected the data.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from kdbench.tracks.policy.blocks.gaussians import entropy, gaussian_kl, log_likelihood, masked_mean
from kdbench.tracks.policy.worlds.base import Observation, Step, World

if TYPE_CHECKING:
    from kdbench.tracks.policy.task import PolicyTask


@dataclass(frozen=True)
class Settings:
    """Of the algorithm."""

    worlds: int = 32
    """Episodes side by side, of all robots together."""
    rollout: int = 64
    """Steps of each between two rounds of updates."""
    epochs: int = 5
    parts: int = 4
    """Batches that the data of a round are cut into."""
    lr: float = 3e-4
    """At first."""
    gamma: float = 0.99
    lam: float = 0.95
    clip: float = 0.2
    entropy: float = 0.001
    kl: float = 0.01
    """Divergence per round, in nats, that the learning rate is kept at."""
    norm: float = 1.0
    """Of gradients, at most."""


class Agent(Protocol):
    """What is trained: a Gaussian policy and a value, both of a state that a frozen part makes of observations."""

    def state(self, obs: Observation) -> Tensor:
        """(B, D), without gradient."""

    def mean(self, state: Tensor) -> Tensor:
        """(B, A)."""

    def std(self) -> Tensor:
        """(A,)."""

    def value(self, state: Tensor) -> Tensor:
        """(B,)."""

    def parameters(self) -> Iterator[nn.Parameter]:
        """Everything that is trained, and nothing that is frozen."""


class Reward(Protocol):
    """The reward that is learned from."""

    def __call__(self, step: Step, action: np.ndarray, before: np.ndarray) -> np.ndarray:
        """(n,) of a step, its actions (n, A) and those of the step before, 0 at first."""


def gae(
    rewards: Tensor, values: Tensor, after: Tensor, terminated: Tensor, done: Tensor, gamma: float, lam: float
) -> Tensor:
    """Advantages (T, n). ``values`` of states acted in, ``after`` of those reached, before any reset; all (T, n)."""
    deltas = rewards + gamma * after * (~terminated) - values
    found, running = torch.zeros_like(deltas), torch.zeros_like(deltas[0])
    for t in reversed(range(len(deltas))):
        running = deltas[t] + gamma * lam * (~done[t]) * running
        found[t] = running
    return found


@dataclass
class Samples:
    """Decisions with all that an update needs, the first dimension being the sample."""

    state: Tensor
    actions: Tensor
    mask: Tensor
    """(B, A) bool: dimensions that the robot uses."""
    mean: Tensor
    std: Tensor
    """(B, A), as mean: of the policy that acted."""
    advantage: Tensor
    """(B,), scaled to mean 0 and deviation 1 over the round."""
    target: Tensor
    """(B,) what the value should be."""

    def __len__(self) -> int:
        return len(self.state)

    def rows(self, index: Tensor) -> Samples:
        """Some of them."""
        return Samples(**{item.name: getattr(self, item.name)[index] for item in fields(self)})


def clipped_loss(ratio: Tensor, advantage: Tensor, clip: float) -> Tensor:
    """-mean min(ratio A, clip(ratio, 1 - clip, 1 + clip) A)."""
    return -torch.minimum(ratio * advantage, ratio.clamp(1 - clip, 1 + clip) * advantage).mean()


def losses(agent: Agent, batch: Samples, settings: Settings) -> dict[str, Tensor]:
    """Named losses of an update."""
    mean, std = agent.mean(batch.state), agent.std()
    used = batch.mask.to(mean.dtype)
    now, then = log_likelihood(batch.actions, mean, std), log_likelihood(batch.actions, batch.mean, batch.std)
    ratio = ((now - then) * used).sum(-1).exp()
    return {
        "policy": clipped_loss(ratio, batch.advantage, settings.clip),
        "value": (agent.value(batch.state) - batch.target).square().mean(),
        "entropy": -settings.entropy * entropy(std),
    }


class Collector:
    """Episodes of one robot or several, that go on from round to round; one that is over is followed by a new one."""

    def __init__(
        self,
        worlds: Sequence[World],
        masks: Sequence[Sequence[bool]],
        agent: Agent,
        reward: Reward,
        *,
        seeds: np.ndarray,
        rng: np.random.Generator,
        generator: torch.Generator,
        device: torch.device | str = "cpu",
    ) -> None:
        """``masks``: used dimensions of the actions of each world; layouts are drawn from ``seeds`` with ``rng``."""
        self.worlds, self.agent, self.reward, self.seeds, self.rng = worlds, agent, reward, seeds, rng
        self.generator, self.device = generator, device
        self.mask = torch.cat(
            [torch.tensor(mask).expand(world.n, -1) for world, mask in zip(worlds, masks, strict=True)]
        )
        self.before = [np.zeros((world.n, world.actions)) for world in worlds]
        self.seen = [world.reset(rng.choice(seeds, world.n)) for world in worlds]
        self.ended, self.won = 0, 0

    def _state(self) -> Tensor:
        return torch.cat([self.agent.state(obs.to(self.device)) for obs in self.seen])

    @torch.no_grad()
    def collect(self, steps: int, settings: Settings) -> Samples:
        """One round: ``steps`` of every row."""
        rows: dict[str, list[Tensor]] = {name: [] for name in ("state", "actions", "mean", "values", "after")}
        paid, terminated, done = [], [], []
        self.ended, self.won, std = 0, 0, self.agent.std()
        state = self._state()
        for _ in range(steps):
            mean = self.agent.mean(state)
            noise = torch.randn(mean.shape, generator=self.generator).to(mean)
            actions = mean + std * noise
            outcome = self._step(actions.cpu().numpy())
            reached = self._state()
            for name, value in {
                "state": state,
                "actions": actions,
                "mean": mean,
                "values": self.agent.value(state),
                "after": self.agent.value(reached),
            }.items():
                rows[name].append(value)
            paid.append(outcome[0])
            terminated.append(outcome[1])
            done.append(outcome[2])
            if outcome[2].any():
                self._renew()
                reached = self._state()
            state = reached
        part = {name: torch.stack(values) for name, values in rows.items()}
        told = [torch.from_numpy(np.stack(values)).to(self.device) for values in (paid, terminated, done)]
        advantage = gae(told[0].float(), part["values"], part["after"], told[1], told[2], settings.gamma, settings.lam)
        target = advantage + part["values"]
        advantage = (advantage - advantage.mean()) / advantage.std(correction=0).clamp_min(1e-6)
        mask = self.mask.to(self.device).expand(steps, -1, -1)
        flat = (part["state"], part["actions"], mask, part["mean"], std.expand_as(part["mean"]), advantage, target)
        return Samples(*(value.flatten(0, 1) for value in flat))

    def _step(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Reward, terminated and done of all rows; the observations are those before any reset."""
        found, first = [], 0
        for number, world in enumerate(self.worlds):
            mine = actions[first : first + world.n]
            first += world.n
            step = world.step(mine)
            taken = np.clip(mine, -1, 1)
            found.append((self.reward(step, taken, self.before[number]), step.terminated, step.done))
            self.seen[number], self.before[number] = step.obs, taken
            self.ended += int(step.done.sum())
            self.won += int((step.success & step.done).sum())
        paid, terminated, done = (np.concatenate(parts) for parts in zip(*found, strict=True))
        return paid, terminated, done

    def _renew(self) -> None:
        for number, world in enumerate(self.worlds):
            over = world.state["over"]
            if over.any():
                self.seen[number] = world.reset(self.rng.choice(self.seeds, world.n), over)
                self.before[number][over] = 0


class Rounds:
    """Batches for ``task.steps``: each iteration collects a round and passes over it several times, in new orders."""

    def __init__(self, collector: Collector, steps: int, settings: Settings, generator: torch.Generator) -> None:
        self.collector, self.steps, self.settings, self.generator = collector, steps, settings, generator

    def __iter__(self) -> Iterator[Samples]:
        samples = self.collector.collect(self.steps, self.settings)
        for _ in range(self.settings.epochs):
            order = torch.randperm(len(samples), generator=self.generator).to(samples.state.device)
            for part in order.tensor_split(self.settings.parts):
                if len(part):
                    yield samples.rows(part)


def improve(
    task: PolicyTask,
    agent: Agent,
    collector: Collector,
    *,
    env_steps: int,
    settings: Settings,
    updates: int | None = None,
    spend: str = "aux_steps",
    tag: str = "",
) -> None:
    """Train ``agent`` with at most ``env_steps`` of interaction.

    ``updates``: optimizer steps in all, over which the interaction is spread; None: rounds of ``settings.rollout``
    steps. Raises ``ValueError`` where ``env_steps`` are not one step for every world.
    """
    rows, round_updates = sum(world.n for world in collector.worlds), settings.epochs * settings.parts
    if env_steps < rows:
        raise ValueError(f"{env_steps} steps of interaction are not one for each of {rows} worlds")
    if updates is None:
        length = min(settings.rollout, env_steps // rows)
        updates = max(1, env_steps // (rows * length)) * round_updates
    else:
        length = max(1, env_steps // (rows * -(-updates // round_updates)))
    trained = [parameter for parameter in agent.parameters() if parameter.requires_grad]
    optimizer, lr = torch.optim.Adam(trained, lr=settings.lr), settings.lr
    rounds = Rounds(collector, length, settings, task.generator(f"{tag}order"))
    for step, batch in task.steps(rounds, steps=updates, spend=spend):
        with torch.no_grad():
            moved = masked_mean(gaussian_kl(batch.mean, batch.std, agent.mean(batch.state), agent.std()), batch.mask)
        moved = moved * batch.mask.sum(-1).float().mean()
        if moved > 2 * settings.kl:
            lr = max(1e-5, lr / 1.5)
        elif 0 < moved < settings.kl / 2:
            lr = min(1e-2, lr * 1.5)
        optimizer.param_groups[0]["lr"] = lr
        named = losses(agent, batch, settings)
        optimizer.zero_grad(set_to_none=True)
        torch.stack(list(named.values())).sum().backward()
        nn.utils.clip_grad_norm_(trained, settings.norm)
        optimizer.step()
        if step % round_updates == 0 or step == updates:
            won = collector.won / max(1, collector.ended)
            task.log(
                step, **{f"{tag}{name}": value.detach() for name, value in named.items()}, **{f"{tag}success": won}
            )
