"""Bandits and lakes: a policy is learned from logged episodes, and its value is exact."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import nn

from kdbench.task import Scores, seed_of
from kdbench.tracks.policy.blocks.logged import Logged, LoggedLoader
from kdbench.tracks.policy.kinds.base import Kind
from kdbench.tracks.policy.networks.tables import TableNet
from kdbench.tracks.policy.policies.tabular import Tables
from kdbench.tracks.policy.spec import Bandits
from kdbench.tracks.policy.worlds.tabular import MDP, bandit, evaluate, lake, optimal, sample

if TYPE_CHECKING:
    from kdbench.tracks.policy.task import PolicyTask


class OfflineKind(Kind):
    """Problems with logged episodes."""

    returns = Tables

    @cached_property
    def mdps(self) -> list[MDP]:
        """The processes."""
        world = self.spec.world
        if isinstance(world, Bandits):
            return [bandit(chances) for chances in world.arms]
        return [lake(world.size, world.hold, world.steps)]

    @cached_property
    def behaviour(self) -> list[np.ndarray]:
        """(S, A) or (H, S, A) policies that the data are of: given arms, or optimal actions mixed with random ones."""
        world = self.spec.world
        if isinstance(world, Bandits):
            return [np.broadcast_to(np.asarray(row), (3, len(row))) for row in world.behaviour]
        (mdp,) = self.mdps
        return [world.behaviour / mdp.actions + (1 - world.behaviour) * optimal(mdp).policy]

    @cached_property
    def problems(self) -> list[Logged]:
        """What methods see. The same for every method and job seed."""
        found = []
        for number, (mdp, policy) in enumerate(zip(self.mdps, self.behaviour, strict=True)):
            rng = np.random.default_rng(seed_of("policy", self.spec.world.kind, number, self.spec.teacher_seed))
            found.append(
                Logged(mdp.states, mdp.actions, mdp.horizon, sample(mdp, policy, self.spec.data.episodes, rng))
            )
        return found

    def build_student(self) -> nn.Module:
        return TableNet([(one.states, one.actions) for one in self.problems])

    def loader(self, task: PolicyTask, size: int) -> LoggedLoader:
        count = self.spec.data.episodes
        return LoggedLoader(self.problems, min(size, count), task.generator("data"), task.device)

    def floor(self, task: PolicyTask) -> Tables:
        return Tables([np.full((mdp.states, mdp.actions), 1 / mdp.actions) for mdp in self.mdps])

    def ceiling(self, task: PolicyTask) -> Tables:
        return Tables([optimal(mdp).policy for mdp in self.mdps])

    def validate(self, task: PolicyTask, model: Tables) -> dict[str, float]:
        """Mean return of simulated episodes, metered as ``validation_steps``."""
        returns = []
        for number, (mdp, table) in enumerate(zip(self.mdps, model.tables, strict=True)):
            rng = np.random.default_rng(seed_of(self.spec.name, "val", number))
            episodes = sample(mdp, table, self.spec.evaluation.val_episodes, rng)
            task.budget.spend("validation_steps", episodes.steps)
            returns.append(float(episodes.returns.mean()))
        return {"return": float(np.mean(returns))}

    def measure(self, task: PolicyTask, model: Tables) -> Scores:
        values = np.array([evaluate(mdp, table).value for mdp, table in zip(self.mdps, model.tables, strict=True)])
        best = np.array([optimal(mdp).value for mdp in self.mdps])
        metrics: dict[str, Any] = {"return": float(values.mean()), "optimality": float((values / best).mean())}
        # not under the name of a metric: the problems are the task, and no sample that a score would depend on
        return Scores(metrics, {"values": values})
