"""Samplers of code sequences: place by place, or all places at once."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from kdbench.tracks.diffusion.conditions import Condition
from kdbench.tracks.diffusion.networks.causal import CausalGpt, Factorized
from kdbench.tracks.diffusion.samplers.base import Sampler

if TYPE_CHECKING:
    from kdbench.tracks.diffusion.task import DiffusionTask


def save_sequence_model(network: CausalGpt | Factorized, folder: Path) -> None:
    """Write weights and shape."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file({name: t.cpu().contiguous() for name, t in network.state_dict().items()}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(network.config) + "\n")


def load_sequence_model(cls: type[CausalGpt] | type[Factorized], folder: Path) -> CausalGpt | Factorized:
    """What :func:`save_sequence_model` wrote, in evaluation mode on the CPU; global random numbers stay as they are."""
    with torch.random.fork_rng(devices=[]):
        network = cls.from_config(json.loads((folder / "config.json").read_text()))
    network.load_state_dict(load_file(folder / "model.safetensors"))
    return network.eval()


class Causal(Sampler):
    """A causal network, place by place: as many evaluations as there are places. ``noise`` is not read."""

    kind = "causal"

    def __init__(self, network: CausalGpt, guidance: float = 1.0) -> None:
        self.network, self.guidance = network, guidance

    def draw(self, noise: Tensor, cond: Condition, generator: torch.Generator) -> tuple[Tensor, list[Tensor]]:
        codes = self.network.sample(cond, generator, self.guidance)
        x = self.network.codebook[codes]
        return x, [x]

    def table(self, cond: Condition, places: int) -> Tensor:
        """(B, V ** places) float64 exact probabilities of the first codes."""
        return self.network.table(cond, places, self.guidance)

    def networks(self) -> Mapping[str, nn.Module]:
        return {"network": self.network}

    def save(self, folder: Path) -> None:
        save_sequence_model(self.network, folder / "network")
        (folder / "sampler.json").write_text(json.dumps({"guidance": self.guidance}) + "\n")

    @classmethod
    def load(cls, folder: Path, task: DiffusionTask) -> Causal:
        network = load_sequence_model(CausalGpt, folder / "network")
        return cls(task.place(network), **json.loads((folder / "sampler.json").read_text()))


class Independent(Sampler):
    """All codes at once, each from a distribution of its own: one evaluation. ``noise`` is not read."""

    kind = "independent"

    def __init__(self, network: Factorized) -> None:
        self.network = network

    def draw(self, noise: Tensor, cond: Condition, generator: torch.Generator) -> tuple[Tensor, list[Tensor]]:
        x = self.network.codebook[self.network.sample(cond, generator)]
        return x, [x]

    def table(self, cond: Condition, places: int) -> Tensor:
        """As :meth:`Causal.table`."""
        return self.network.table(cond, places)

    def networks(self) -> Mapping[str, nn.Module]:
        return {"network": self.network}

    def save(self, folder: Path) -> None:
        save_sequence_model(self.network, folder / "network")

    @classmethod
    def load(cls, folder: Path, task: DiffusionTask) -> Independent:
        return cls(task.place(load_sequence_model(Factorized, folder / "network")))
