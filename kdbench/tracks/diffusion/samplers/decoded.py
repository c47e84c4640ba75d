"""A sampler with a decoder after it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors.torch import load_file, save_file
from torch import Generator, Tensor, nn
from torch.random import fork_rng

from kdbench.tracks.diffusion.blocks.refinement import Refiner
from kdbench.tracks.diffusion.conditions import Condition
from kdbench.tracks.diffusion.samplers.base import Sampler
from kdbench.tracks.diffusion.samplers.fewstep import FewStep

if TYPE_CHECKING:
    from kdbench.tracks.diffusion.task import DiffusionTask


class Decoded(Sampler):
    """A few steps of a denoiser, and a decoder of what they give.

    A call of the decoder is no evaluation of the denoiser, and is not counted as one: nor is that of an autoencoder.
    """

    kind = "decoded"

    def __init__(self, sampler: FewStep, decoder: Refiner) -> None:
        self.sampler, self.decoder = sampler, decoder

    def draw(self, noise: Tensor, cond: Condition, generator: Generator) -> tuple[Tensor, list[Tensor]]:
        x, states = self.sampler.draw(noise, cond, generator)
        out = self.decoder.forward(x)  # not by a call, which would count
        return out, [*states, out]

    def networks(self) -> Mapping[str, nn.Module]:
        return {**self.sampler.networks(), "decoder": self.decoder}

    def save(self, folder: Path) -> None:
        (folder / "steps").mkdir(parents=True, exist_ok=True)
        self.sampler.save(folder / "steps")
        weights = {name: tensor.cpu().contiguous() for name, tensor in self.decoder.state_dict().items()}
        save_file(weights, folder / "decoder.safetensors")
        (folder / "decoder.json").write_text(json.dumps(self.decoder.config) + "\n")

    @classmethod
    def load(cls, folder: Path, task: DiffusionTask) -> Decoded:
        with fork_rng(devices=[]):
            decoder = Refiner(**json.loads((folder / "decoder.json").read_text()))
        decoder.load_state_dict(load_file(folder / "decoder.safetensors"))
        return cls(FewStep.load(folder / "steps", task), task.place(decoder).eval())
