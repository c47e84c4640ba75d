"""Decisions that an expert was asked for, in states that a student came to."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from kdbench.tracks.policy.batches import Episodes, StepLoader
from kdbench.tracks.policy.policies.base import Policy

if TYPE_CHECKING:
    from kdbench.tracks.policy.task import PolicyTask


class Aggregate:
    """All decisions so far: those of demonstrations, and answers."""

    def __init__(self, episodes: Episodes) -> None:
        mask = episodes.mask()
        robot = episodes.robot[:, None].expand_as(mask)[mask]
        self._parts = [(episodes.vector[mask], episodes.actions[mask], robot)]

    def __len__(self) -> int:
        return sum(len(part[0]) for part in self._parts)

    @torch.no_grad()
    def ask(self, task: PolicyTask, policy: Policy, episodes: int, number: int) -> None:
        """``episodes`` of each robot are driven by ``policy``; the expert answers at every step that was made.

        ``number`` of the round: each has layouts of its own, after those of the demonstrations.
        """
        for robot in task.robots:
            world, expert = task.world(episodes, robot), task.expert()
            obs = world.reset(task.seeds("train", (number + 1) * episodes)[-episodes:] + 500_000)
            expert.bind(world)
            expert.reset(episodes, torch.Generator())
            policy.reset(episodes, task.generator(f"{robot}/{number}"))
            while not world.state["over"].all():
                live = torch.from_numpy(~world.state["over"])
                answers = expert.act(obs)
                moves = policy.act(obs.to(task.device)).cpu()
                assert obs.robot is not None
                self._parts.append((obs.vector[live], answers[live], obs.robot[live]))
                obs = world.step(moves).obs

    def loader(self, size: int, generator: torch.Generator, device: Any) -> StepLoader:
        """Batches of all decisions."""
        vector, actions, robot = (torch.cat(column) for column in zip(*self._parts, strict=True))
        return StepLoader(vector, actions, robot, size, generator, device)
