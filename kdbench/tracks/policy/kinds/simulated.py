"""What simulated worlds have in common: demonstrations of an expert, students, and scores from rollouts."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from kdbench.errors import JobError
from kdbench.task import seed_of
from kdbench.tracks.policy.batches import ChunkLoader, Episodes, StepLoader, of_rollouts
from kdbench.tracks.policy.kinds.base import Kind
from kdbench.tracks.policy.networks.gaussian import GaussianMLP
from kdbench.tracks.policy.networks.unet1d import TemporalUNet
from kdbench.tracks.policy.policies.base import Policy, Privileged
from kdbench.tracks.policy.policies.simple import RandomPolicy
from kdbench.tracks.policy.rollouts import Rollout, rollout
from kdbench.tracks.policy.spec import Generalist, UNetPolicy
from kdbench.tracks.policy.worlds.base import World

if TYPE_CHECKING:
    from kdbench.tracks.policy.task import PolicyTask

SPLITS = {"train": 1_000_000, "val": 2_000_000, "test": 3_000_000}
"""First seed of the episodes of a split; a million each."""
BATCH = 500
"""Episodes that are simulated at a time when demonstrations are made."""


class SimulatedKind(Kind):
    """A world with a scripted expert."""

    returns = Policy
    robots: tuple[str, ...] = ("",)
    """Bodies that the world has; one without a name where there is a single one."""

    # --- the world ------------------------------------------------------------------------------------------------

    def world(self, n: int, robot: str | None = None) -> World:
        """A simulator of ``n`` episodes, of the first body unless another is named."""
        raise NotImplementedError

    def expert(self) -> Privileged:
        """The scripted expert."""
        raise NotImplementedError

    @property
    def actions(self) -> int:
        """A."""
        return self.world(1).actions

    def seeds(self, split: str, count: int) -> np.ndarray:
        """(count,) seeds of the first episodes of a split."""
        return np.arange(count) + SPLITS[split]

    # --- demonstrations -------------------------------------------------------------------------------------------

    def make_demonstrations(self) -> Episodes:
        """Episodes of the expert, those that succeed; the robots one after the other."""
        parts = []
        for number, robot in enumerate(self.robots):
            seeds = self.seeds("train", self.spec.data.episodes) + number * 100_000
            for start in range(0, len(seeds), BATCH):
                some = seeds[start : start + BATCH]
                generator = torch.Generator().manual_seed(seed_of("demonstrations", robot, start))
                ran = rollout(self.world(len(some), robot), self.expert(), some, generator, observe=True)
                parts.append(of_rollouts(ran.observations, ran.actions, ran.length, ran.success, number))
        found = Episodes.joined(parts)
        if not len(found):
            raise JobError(f"the expert of {self.spec.name} never succeeds")
        return found

    @cached_property
    def demonstrations(self) -> Episodes:
        """The cached demonstrations, on the CPU."""

        def make(folder: Path) -> None:
            self.make_demonstrations().save(folder)

        return Episodes.load(self.cache.get("demonstrations", self.spec.demonstrations_key(), make))

    def prepare(self) -> None:
        _ = self.demonstrations

    def loader(self, task: PolicyTask, size: int) -> Any:
        episodes, student = task.demonstrations(), self.spec.student
        if isinstance(student, Generalist):
            return StepLoader.of(episodes, size, task.generator("data"), task.device)
        return ChunkLoader(
            episodes,
            observed=student.observed,
            horizon=student.horizon,
            size=size,
            generator=task.generator("data"),
            device=task.device,
            render=self.render,
        )

    render: Any = None
    """Makes of stored vectors what policies see; None: they see the vectors."""

    # --- students -------------------------------------------------------------------------------------------------

    def build_student(self) -> nn.Module:
        student, episodes = self.spec.student, self.demonstrations
        observed = episodes.vector.shape[-1]
        network: Any
        if isinstance(student, UNetPolicy):
            network = TemporalUNet(self.actions, student.observed * observed, student.channels, student.embedding)
        elif isinstance(student, Generalist):
            network = GaussianMLP(observed, student.hidden, self.actions, student.codes)
        else:
            raise JobError(f"{self.spec.name} has no student of kind {student.kind!r}")
        network.normalise(*episodes.statistics())
        return network

    def floor(self, task: PolicyTask) -> Policy:
        return RandomPolicy(self.actions)

    def ceiling(self, task: PolicyTask) -> Policy:
        return self.expert()

    # --- scores ---------------------------------------------------------------------------------------------------

    def run(
        self,
        policy: Policy,
        split: str,
        *,
        device: Any = "cpu",
        robot: str | None = None,
        repeats: int = 1,
        **options: Any,
    ) -> Rollout:
        """Episodes on the layouts of a split: all layouts, then all again, ``repeats`` times."""
        evaluation = self.spec.evaluation
        layouts = self.seeds(split, evaluation.episodes if split == "test" else evaluation.val_episodes)
        seeds = np.tile(layouts, repeats)
        generator = torch.Generator().manual_seed(seed_of(self.spec.name, "rollout", split, robot))
        return rollout(self.world(len(seeds), robot), policy, seeds, generator, device=device, **options)

    def validate(self, task: PolicyTask, model: Policy) -> dict[str, float]:
        """Success and return on the validation layouts, mean over the robots."""
        runs = [self.run(model, "val", device=task.device, robot=robot) for robot in self.robots]
        task.budget.spend("validation_steps", float(sum(ran.length.sum() for ran in runs)))
        return {
            "success": float(np.mean([ran.success.mean() for ran in runs])),
            "return": float(np.mean([ran.returns.mean() for ran in runs])),
        }
