"""Samples of the data themselves: what a perfect generator would be scored."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from kdbench.errors import JobError
from kdbench.tracks.diffusion.conditions import Condition
from kdbench.tracks.diffusion.samplers.base import Sampler

if TYPE_CHECKING:
    from kdbench.tracks.diffusion.task import DiffusionTask


class Reals(Sampler):
    """Real samples with the tokens that were asked for, drawn with replacement."""

    kind = "reals"

    def __init__(self, x: Tensor, tokens: Tensor | None) -> None:
        """``x`` (N, *shape); ``tokens`` (N, L), or None without conditions."""
        self.x, self.tokens = x, tokens
        self._rows: dict[tuple[int, ...], Tensor] = {}
        if tokens is not None:
            for key in {tuple(row) for row in tokens.tolist()}:
                self._rows[key] = (tokens == torch.tensor(key, device=tokens.device)).all(1).nonzero()[:, 0]

    def draw(self, noise: Tensor, cond: Condition, generator: torch.Generator) -> tuple[Tensor, list[Tensor]]:
        picks = torch.rand(len(noise), generator=generator)
        if self.tokens is None or cond.tokens is None:
            rows = (picks * len(self.x)).long()
            return self.x[rows].to(noise), [self.x[rows].to(noise)]
        rows = torch.empty(len(noise), dtype=torch.int64)
        for number, key in enumerate(map(tuple, cond.tokens.tolist())):
            if key not in self._rows:
                raise JobError(f"there is no real sample with the tokens {key}")
            among = self._rows[key]
            rows[number] = among[int(picks[number] * len(among))]
        x = self.x[rows.to(self.x.device)].to(noise)
        return x, [x]

    def save(self, folder: Path) -> None:
        torch.save(
            {"x": self.x.cpu(), "tokens": None if self.tokens is None else self.tokens.cpu()}, folder / "reals.pt"
        )
        (folder / "sampler.json").write_text(json.dumps({"rows": len(self.x)}) + "\n")

    @classmethod
    def load(cls, folder: Path, task: DiffusionTask) -> Reals:
        stored = torch.load(folder / "reals.pt", weights_only=True)
        tokens = stored["tokens"]
        return cls(stored["x"].to(task.device), None if tokens is None else tokens.to(task.device))
