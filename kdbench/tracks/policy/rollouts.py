"""Episodes of a policy in a world: what came of them, and what the decisions cost."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from kdbench.tracks.diffusion.samplers.base import counting
from kdbench.tracks.policy.policies.base import Policy, Privileged
from kdbench.tracks.policy.worlds.base import Observation, World

Hook = Callable[[World, int], None]
"""Called with the world and the number of steps made so far, before each decision; may change the world's state."""


@dataclass
class Rollout:
    """n episodes."""

    returns: np.ndarray
    """(n,) sums of rewards."""
    success: np.ndarray
    """(n,) bool."""
    contact: np.ndarray
    """(n,) bool."""
    length: np.ndarray
    """(n,) int64 steps."""
    actions: np.ndarray
    """(n, L, A) float32 that were taken; 0 after the end."""
    tracks: dict[str, np.ndarray]
    """(n, L + 1, ...) parts of the world's state that were asked for, before every step and at the end."""
    observations: list[Observation]
    """L observations that the actions answer to, where they were asked for."""
    nfe: float
    """Evaluations of networks per episode and step, counted."""
    seconds: float
    """Wall time of all decisions together."""
    decisions: int
    """Episodes and steps that were decided."""

    @property
    def ms_per_action(self) -> float:
        """Milliseconds per decision of one episode, in batches of the size of the evaluation."""
        return 1e3 * self.seconds / max(1, self.decisions)


@torch.no_grad()
def rollout(
    world: World,
    policy: Policy,
    seeds: np.ndarray,
    generator: torch.Generator,
    *,
    device: torch.device | str = "cpu",
    record: Sequence[str] = (),
    observe: bool = False,
    hook: Hook | None = None,
) -> Rollout:
    """Episodes of ``seeds`` (n,) from their start to their end, networks in evaluation mode.

    ``record`` names parts of the state to keep, ``observe`` keeps the observations.
    """
    n = len(seeds)
    obs = world.reset(seeds)
    if hook is not None:
        hook(world, 0)
        obs = world.observe()
    if isinstance(policy, Privileged):
        policy.bind(world)
    networks = list({id(network): network for network in policy.networks().values()}.values())
    modes = [network.training for network in networks]
    for network in networks:
        network.eval()
    returns, contact, length = np.zeros(n), np.zeros(n, dtype=bool), np.zeros(n, dtype=np.int64)
    taken: list[np.ndarray] = []
    seen: list[Observation] = []
    tracks: dict[str, list[np.ndarray]] = {name: [world.state[name].copy()] for name in record}
    seconds, decisions, rows = 0.0, 0, 0
    try:
        with counting(networks) as count:
            started = time.perf_counter()
            policy.reset(n, generator)
            seconds += time.perf_counter() - started
            for number in range(world.steps):
                if hook is not None and number:
                    hook(world, number)
                    obs = world.observe()
                live = ~world.state["over"]
                started = time.perf_counter()
                actions = policy.act(obs.to(device)).cpu()
                seconds += time.perf_counter() - started
                decisions, rows = decisions + int(live.sum()), rows + n
                if observe:
                    seen.append(obs)
                step = world.step(actions)
                obs = step.obs
                returns, contact, length = returns + step.reward, contact | step.contact, length + live
                taken.append(actions.numpy() * live[:, None])
                for name in record:
                    tracks[name].append(world.state[name].copy())
                if world.state["over"].all():
                    break
    finally:
        for network, mode in zip(networks, modes, strict=True):
            network.train(mode)
    return Rollout(
        returns,
        world.state["won"].copy(),
        contact,
        length,
        np.stack(taken, 1).astype(np.float32),
        {name: np.stack(parts, 1) for name, parts in tracks.items()},
        seen,
        count.rows / max(1, rows),
        seconds,
        decisions,
    )
