"""World ``desk``: twelve tasks from pictures and sentences, single ones and chains of five."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from kdbench.task import Scores, seed_of
from kdbench.tracks.policy.batches import Episodes
from kdbench.tracks.policy.kinds.simulated import SPLITS, SimulatedKind
from kdbench.tracks.policy.networks.chunk_transformer import ChunkTransformer
from kdbench.tracks.policy.policies.base import Policy, Privileged
from kdbench.tracks.policy.rollouts import rollout
from kdbench.tracks.policy.worlds.base import Observation, World
from kdbench.tracks.policy.worlds.desk import TASKS, VOCABULARY, Desk, pictures, sentence
from kdbench.tracks.policy.worlds.desk_expert import DeskExpert

if TYPE_CHECKING:
    from kdbench.tracks.policy.task import PolicyTask

CHAIN = 5
"""Tasks of a chain, as of CALVIN."""


class DeskKind(SimulatedKind):
    """Tables; seeds follow the tasks in turn."""

    @property
    def actions(self) -> int:
        return Desk.actions

    def world(self, n: int, robot: str | None = None) -> Desk:
        return Desk(n, steps=self.spec.world.steps, size=self.spec.world.size)

    def expert(self) -> Privileged:
        return DeskExpert()

    def seeds(self, split: str, count: int) -> np.ndarray:
        """``count`` episodes of each task."""
        first = -(-SPLITS[split] // len(TASKS)) * len(TASKS)
        return np.arange(count * len(TASKS)) + first

    def make_demonstrations(self) -> Episodes:
        """Scenes instead of pictures: loaders draw them."""
        parts = []
        seeds = self.seeds("train", self.spec.data.episodes)
        for start in range(0, len(seeds), 480):
            some = seeds[start : start + 480]
            world = Desk(len(some), steps=self.spec.world.steps, size=1)  # nobody looks at the pictures
            ran = rollout(world, self.expert(), some, torch.Generator().manual_seed(start), record=("scene", "words"))
            mask = torch.arange(ran.actions.shape[1]) < torch.from_numpy(ran.length)[:, None]
            keep = torch.from_numpy(np.flatnonzero(ran.success))
            scene = torch.from_numpy(ran.tracks["scene"][:, :-1].astype(np.float32)) * mask[..., None]
            words = torch.from_numpy(ran.tracks["words"][:, 0])
            length = torch.from_numpy(ran.length)
            actions = torch.from_numpy(ran.actions)
            parts.append(
                Episodes(scene[keep], actions[keep], length[keep], torch.zeros_like(length[keep]), words[keep])
            )
        return Episodes.joined(parts)

    def render(self, scene: Tensor) -> Observation:  # type: ignore[override]
        return pictures(scene, self.spec.world.size)

    def transformer(self, **changes: Any) -> ChunkTransformer:
        """The task's student from the global generators, or another of its size with other experts."""
        student = self.spec.student
        options: dict[str, Any] = {
            "image": self.spec.world.size,
            "vocabulary": len(VOCABULARY),
            "width": student.width,
            "depth": student.depth,
            "heads": student.heads,
            "dropout": student.dropout,
            **changes,
        }
        return ChunkTransformer(self.actions, student.horizon, **options)

    def build_student(self) -> nn.Module:
        return self.transformer()

    def measure(self, task: PolicyTask, model: Policy) -> Scores:
        ran = self.run(model, "test", device=task.device)
        chain = self.chains(model, task)
        each = ran.success.astype(float)
        metrics = {
            "success": float(each.mean()),
            "worst_task": float(each.reshape(-1, len(TASKS)).mean(0).min()),
            "chain": float(chain.mean()),
            "nfe": ran.nfe,
            "ms_per_action": ran.ms_per_action,
        }
        return Scores(metrics, {"success": each})

    def chains(self, policy: Policy, task: PolicyTask) -> np.ndarray:
        """(chains,) how many of five tasks in a row are done; the next begins on the table that the last left."""
        count = self.spec.evaluation.chains
        rng = np.random.default_rng(seed_of(self.spec.name, "chains"))
        orders = np.stack([rng.permutation(len(TASKS))[:CHAIN] for _ in range(count)])
        templates = rng.integers(3, size=(count, CHAIN))
        seeds = self.seeds("test", count)[:count] + 500_000 // len(TASKS) * len(TASKS)
        generator = torch.Generator().manual_seed(seed_of(self.spec.name, "rollout", "chains"))
        world, alive, state = self.world(count), np.ones(count, dtype=bool), None
        done = np.zeros(count)
        for number in range(CHAIN):
            tasks = orders[:, number]
            words = np.stack([sentence(int(a), int(b)) for a, b in zip(tasks, templates[:, number], strict=True)])

            def go_on(one: World, step: int, tasks: Any = tasks, words: Any = words, state: Any = state) -> None:
                if step == 0:
                    assert isinstance(one, Desk)
                    if state is not None:
                        one.load_state_dict(state)
                    one.next_task(tasks, words)
                    one.state["over"] |= ~alive  # noqa: B023 - called within this round

            ran = rollout(world, policy, seeds, generator, device=task.device, hook=go_on)
            alive = alive & ran.success
            done += alive
            state = world.state_dict()
        return done
