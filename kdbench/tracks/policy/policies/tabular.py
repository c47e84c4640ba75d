"""Results of tabular methods: policies as tables, and the course of an exploration."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from safetensors.numpy import load_file, save_file

from kdbench.errors import ArtifactError
from kdbench.tracks.policy.policies.base import Learned

if TYPE_CHECKING:
    from kdbench.tracks.policy.task import PolicyTask


class Tables(Learned):
    """A policy for each problem of a task of the family ``offline``."""

    kind = "tables"

    def __init__(self, tables: Sequence[np.ndarray]) -> None:
        """``tables``: (S, A) or (H, S, A) a problem; rows are probabilities. Raises ``ArtifactError`` where not."""
        self.tables = [np.ascontiguousarray(table, dtype=np.float64) for table in tables]
        for number, table in enumerate(self.tables):
            if table.ndim not in (2, 3):
                raise ArtifactError(f"table {number} is {table.shape}, not (S, A) or (H, S, A)")
            if not np.isfinite(table).all() or (table < -1e-9).any() or not np.allclose(table.sum(-1), 1, atol=1e-6):
                raise ArtifactError(f"the rows of table {number} are no probabilities (at least 0, their sum 1)")
            clipped = table.clip(min=0)
            self.tables[number] = clipped / clipped.sum(-1, keepdims=True)

    def save(self, folder: Path) -> None:
        save_file({f"{i:03d}": table for i, table in enumerate(self.tables)}, folder / "tables.safetensors")

    @classmethod
    def load(cls, folder: Path, task: PolicyTask) -> Tables:
        found = load_file(folder / "tables.safetensors")
        return cls([found[name] for name in sorted(found)])


@dataclass
class Exploration(Learned):
    """What was played in K episodes in each of M processes, in exact values; made by ``task.explored()``."""

    kind = "exploration"

    values: np.ndarray
    """(M, K) expected return of the policy of each episode, under the true process."""
    optimum: np.ndarray
    """(M,) of an optimal policy."""
    baseline: np.ndarray
    """(M,) of the safe baseline."""
    threshold: np.ndarray
    """(M,) that every episode must reach: (1 - slack) of the baseline's."""

    @property
    def regret(self) -> np.ndarray:
        """(M,) sum over the episodes of what an optimal policy earns more."""
        return np.asarray((self.optimum[:, None] - self.values).sum(1))

    @property
    def violations(self) -> np.ndarray:
        """(M,) episodes whose policy earns less than the threshold, beyond rounding (1e-9)."""
        return np.asarray((self.values < self.threshold[:, None] - 1e-9).sum(1))

    def save(self, folder: Path) -> None:
        save_file({name: np.ascontiguousarray(value) for name, value in vars(self).items()}, folder / "run.safetensors")

    @classmethod
    def load(cls, folder: Path, task: PolicyTask) -> Exploration:
        return cls(**load_file(folder / "run.safetensors"))
