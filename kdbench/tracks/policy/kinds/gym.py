"""Environments of gymnasium, with a scripted expert or with demonstrations from files."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from kdbench.errors import JobError
from kdbench.task import Scores
from kdbench.tracks.policy.batches import Episodes
from kdbench.tracks.policy.kinds.simulated import SimulatedKind
from kdbench.tracks.policy.policies.base import Policy, Privileged
from kdbench.tracks.policy.worlds.base import World
from kdbench.tracks.policy.worlds.gym import Gym, GymExpert

if TYPE_CHECKING:
    from kdbench.tracks.policy.task import PolicyTask


class GymKind(SimulatedKind):
    """One environment."""

    @cached_property
    def _one(self) -> Gym:
        return Gym(1, self.spec.world)

    @property
    def actions(self) -> int:
        return self._one.actions

    def world(self, n: int, robot: str | None = None) -> World:
        return Gym(n, self.spec.world)

    def expert(self) -> Privileged:
        return GymExpert(self.spec.world.id)

    @cached_property
    def demonstrations(self) -> Episodes:
        data = self.spec.data
        if data.path is None:
            return super().demonstrations
        return from_tables(data.path, data.columns, data.episodes, self._one)

    def measure(self, task: PolicyTask, model: Policy) -> Scores:
        repeats = self.spec.evaluation.repeats
        ran = self.run(model, "test", device=task.device, repeats=repeats)
        returns, success = (value.reshape(repeats, -1).mean(0) for value in (ran.returns, ran.success))
        metrics = {
            "return": float(returns.mean()),
            "success": float(success.mean()),
            "nfe": ran.nfe,
            "ms_per_action": ran.ms_per_action,
        }
        return Scores(metrics, {"return": returns, "success": success})


def from_tables(path: str, columns: tuple[str, ...], count: int, world: Gym) -> Episodes:
    """The first ``count`` episodes of parquet files in the layout of LeRobot, their actions scaled to [-1, 1].

    A row is a step, with ``episode_index``, ``action`` and the ``columns`` that an observation is made of, in order.
    ``path`` is a folder of parquet files or a hub name. Raises ``JobError`` where a column is not there.
    """
    from pathlib import Path

    from datasets import load_dataset

    if path.startswith(("/", "./", "../", "~")):
        files = sorted(str(file) for file in Path(path).expanduser().rglob("*.parquet"))
        if not files:
            raise JobError(f"there is no parquet file in {path}")
        table = load_dataset("parquet", data_files=files, split="train")
    else:
        table = load_dataset(path, split="train")
    lacking = [name for name in ("episode_index", "action", *columns) if name not in table.column_names]
    if lacking:
        raise JobError(f"{path} has no column {', '.join(lacking)} (there: {', '.join(table.column_names)})")
    table = table.with_format("torch")
    number = torch.as_tensor(table["episode_index"][:])
    keep = torch.isin(number, torch.unique(number)[:count])
    vector = torch.cat([_matrix(table[name][:]) for name in columns], 1)[keep]
    actions = torch.from_numpy(world.scaled(_matrix(table["action"][:])[keep].double().numpy())).float().clamp(-1, 1)
    groups, length = torch.unique_consecutive(number[keep], return_counts=True)
    longest = int(length.max())
    mask = torch.arange(longest) < length[:, None]
    shaped = []
    for values in (vector, actions):
        filled = torch.zeros(len(groups), longest, values.shape[1])
        filled[mask] = values
        shaped.append(filled)
    empty = torch.zeros(len(groups), dtype=torch.int64)
    return Episodes(shaped[0], shaped[1], length, empty, torch.zeros(len(groups), 0, dtype=torch.int64))


def _matrix(values: Tensor | list[Tensor]) -> Tensor:
    rows = values if isinstance(values, Tensor) else torch.stack([torch.as_tensor(value) for value in values])
    return rows.float().reshape(len(rows), -1)
