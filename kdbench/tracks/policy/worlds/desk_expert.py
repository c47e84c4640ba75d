"""The scripted expert of world ``desk``, in two styles: around a thing on its one side, or on its other."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from kdbench.tracks.policy.policies.base import Privileged
from kdbench.tracks.policy.worlds.desk import BLOCK, DIRECTIONS, GRIP, HANDLE, PAD, RAIL, REACH

if TYPE_CHECKING:
    from kdbench.tracks.policy.task import PolicyTask
    from kdbench.tracks.policy.worlds.base import Observation


class DeskExpert(Privileged):
    """Goes behind what is to be pushed, around it on the side of its style, and pushes; to the switch on a bow."""

    kind = "desk-expert"

    def reset(self, n: int, generator: torch.Generator) -> None:
        """Nothing is kept between steps: the table says how far it is."""

    def act(self, obs: Observation) -> Tensor:
        state = self.world.state
        rows = zip(state["scene"], state["task"], state["style"], strict=True)
        targets = np.array([self.target(scene, int(task), 2 * int(style) - 1) for scene, task, style in rows])
        move = (targets - state["scene"][:, :2]) / REACH
        return torch.from_numpy((move / np.maximum(np.abs(move).max(1, keepdims=True), 1.0)).astype(np.float32))

    def target(self, scene: np.ndarray, task: int, side: int) -> np.ndarray:
        """(2,) where the gripper of a table is to go next; ``side`` is -1 or 1."""
        grip = scene[:2]
        if task == 11:
            rel = PAD - grip
            far = float(np.hypot(*rel))
            bow = np.array([-rel[1], rel[0]]) * side * 0.35 if far > 0.5 else np.zeros(2)
            return np.asarray(PAD + bow)
        if task >= 9:
            thing, way, radius = np.array([scene[8], RAIL]), np.array([1.0 if task == 10 else -1.0, 0.0]), HANDLE
        else:
            colour = task // 3
            thing = scene[2 + 2 * colour : 4 + 2 * colour]
            way, radius = np.array(list(DIRECTIONS.values())[task % 3]), BLOCK
        across, gap = np.array([-way[1], way[0]]), radius + GRIP
        rel = grip - thing
        along, beside = float(rel @ way), float(rel @ across)
        if along < -0.6 * gap and abs(beside) < 0.05:
            return np.asarray(grip + way * REACH - across * beside)  # behind it: push, and keep to its middle
        if along < -gap:
            return np.asarray(thing - way * (gap + 0.03))
        if abs(beside) > gap + 0.02:
            return np.asarray(thing - way * (gap + 0.08) + across * np.sign(beside) * (gap + 0.06))
        return np.asarray(thing + across * side * (gap + 0.1) + way * max(along, -gap))

    def save(self, folder: Path) -> None:
        (folder / "expert.txt").write_text("the scripted expert of world desk; it has no parameters\n")

    @classmethod
    def load(cls, folder: Path, task: PolicyTask) -> DeskExpert:
        return cls()
