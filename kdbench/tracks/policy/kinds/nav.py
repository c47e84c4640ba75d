"""World ``nav``: one robot with several ways to go, or four robots and one policy."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from kdbench.task import Scores
from kdbench.tracks.policy.kinds.simulated import SimulatedKind
from kdbench.tracks.policy.policies.base import Policy, Privileged
from kdbench.tracks.policy.rollouts import Rollout
from kdbench.tracks.policy.worlds.base import World
from kdbench.tracks.policy.worlds.nav import DT, Nav, passed_left
from kdbench.tracks.policy.worlds.nav_expert import NavExpert

if TYPE_CHECKING:
    from kdbench.tracks.policy.task import PolicyTask

RECORD = ("position", "begin", "goal", "discs")


def sides(ran: Rollout) -> np.ndarray:
    """(n,) 1 for episodes that passed the central disc on its left, 0 for those on its right."""
    tracks = ran.tracks
    rows = zip(
        tracks["position"],
        ran.length,
        tracks["begin"][:, 0],
        tracks["goal"][:, 0],
        tracks["discs"][:, 0, 0],
        strict=True,
    )
    return np.array([int(passed_left(p, n + 1, begin, goal, disc[:2])) for p, n, begin, goal, disc in rows])


def coverage(ran: Rollout, layouts: int) -> np.ndarray:
    """(layouts,) share of the two sides that successful episodes on a layout took; of the most that could be taken."""
    side, success = sides(ran).reshape(-1, layouts), ran.success.reshape(-1, layouts)
    taken = (success & (side == 1)).any(0).astype(float) + (success & (side == 0)).any(0)
    return np.asarray(taken / min(2, len(side)))


class NavKind(SimulatedKind):
    """Layouts of discs."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.robots = tuple(self.spec.world.robots)

    @property
    def actions(self) -> int:
        return Nav.actions

    def world(self, n: int, robot: str | None = None) -> World:
        spec = self.spec.world
        options = {"discs": spec.discs, "span": spec.span, "sided": spec.side == "random", "steps": spec.steps}
        return Nav(n, robot=robot or self.robots[0], **options)

    def expert(self) -> Privileged:
        return NavExpert()

    def layouts(self, policy: Policy, split: str, task: PolicyTask, robot: str, **options: Any) -> Rollout:
        """Episodes with what sides are told from; in every second round the expert takes the other side."""
        count = len(
            self.seeds(split, self.spec.evaluation.episodes if split == "test" else self.spec.evaluation.val_episodes)
        )
        given = options.pop("hook", None)

        def hook(world: World, number: int) -> None:
            if number == 0:
                world.state["side"] = (world.state["side"] + np.arange(world.n) // count) % 2
            if given is not None:
                given(world, number)

        options = {"repeats": self.spec.evaluation.repeats, **options}
        return self.run(policy, split, device=task.device, robot=robot, record=RECORD, hook=hook, **options)

    def measure(self, task: PolicyTask, model: Policy) -> Scores:
        runs = {robot: self.layouts(model, "test", task, robot) for robot in self.robots}
        layouts = self.spec.evaluation.episodes
        each = np.mean([ran.success.reshape(-1, layouts).mean(0) for ran in runs.values()], 0)
        contact = np.mean([ran.contact.reshape(-1, layouts).mean(0) for ran in runs.values()], 0)
        metrics = {
            "success": float(each.mean()),
            "collision": float(contact.mean()),
            "coverage": float(np.mean([coverage(ran, layouts).mean() for ran in runs.values()])),
            "time_to_goal": float(np.mean([time_to_goal(ran, self.spec.world.steps) for ran in runs.values()])),
            "nfe": float(np.mean([ran.nfe for ran in runs.values()])),
            "ms_per_action": float(np.mean([ran.ms_per_action for ran in runs.values()])),
        }
        metrics |= {f"success_{robot}": float(ran.success.mean()) for robot, ran in runs.items()}
        return Scores(metrics, {"success": each, "collision": contact})


def time_to_goal(ran: Rollout, steps: int) -> float:
    """Mean seconds until the goal; an episode that does not reach it counts the time limit."""
    return float(np.where(ran.success, ran.length, steps).mean() * DT)
