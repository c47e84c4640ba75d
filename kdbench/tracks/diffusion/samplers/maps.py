"""Samplers around networks that are no denoisers: maps from noise, and mean velocities."""

from __future__ import annotations

import json
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from kdbench.tracks.diffusion.conditions import Condition
from kdbench.tracks.diffusion.networks.maps import FromNoise, MeanVelocity
from kdbench.tracks.diffusion.samplers.base import Sampler

if TYPE_CHECKING:
    from kdbench.tracks.diffusion.task import DiffusionTask


class NoiseMap(Sampler):
    """One call of a network that reads noise and the least time of the process."""

    kind = "noise-map"

    def __init__(self, network: FromNoise) -> None:
        self.network = network

    def draw(self, noise: Tensor, cond: Condition, generator: torch.Generator) -> tuple[Tensor, list[Tensor]]:
        process = self.network.denoiser.process
        x = self.network(noise, process.t_min, cond)
        return x, [process.prior(noise), x]

    def networks(self) -> Mapping[str, nn.Module]:
        return {"network": self.network}

    def save(self, folder: Path) -> None:
        from kdbench.tracks.diffusion.networks.build import save_denoiser

        save_denoiser(self.network.denoiser, folder / "network")

    @classmethod
    def load(cls, folder: Path, task: DiffusionTask) -> NoiseMap:
        from kdbench.tracks.diffusion.networks.build import load_denoiser

        return cls(FromNoise(task.place(load_denoiser(folder / "network"))))


class MeanSteps(Sampler):
    """Jumps x - (t - r) m(x, t, r) along evenly spaced times of the straight line, from noise to the clean end."""

    kind = "mean-steps"

    def __init__(self, network: MeanVelocity, steps: int = 1) -> None:
        self.network, self.steps = network, steps

    def draw(self, noise: Tensor, cond: Condition, generator: torch.Generator) -> tuple[Tensor, list[Tensor]]:
        x, states = noise, [noise]
        times = torch.linspace(1, 0, self.steps + 1).tolist()
        for t, r in pairwise(times):
            ends = (torch.full((len(x),), end, dtype=x.dtype, device=x.device) for end in (t, r))
            x = x - (t - r) * self.network(x, *ends, cond)
            states.append(x)
        return x, states

    def networks(self) -> Mapping[str, nn.Module]:
        return {"network": self.network}

    def save(self, folder: Path) -> None:
        from kdbench.tracks.diffusion.networks.build import save_denoiser

        save_denoiser(self.network.denoiser, folder / "network")
        (folder / "sampler.json").write_text(json.dumps({"steps": self.steps}) + "\n")

    @classmethod
    def load(cls, folder: Path, task: DiffusionTask) -> MeanSteps:
        from kdbench.tracks.diffusion.networks.build import load_denoiser

        network = MeanVelocity(task.place(load_denoiser(folder / "network")))
        return cls(network, **json.loads((folder / "sampler.json").read_text()))
