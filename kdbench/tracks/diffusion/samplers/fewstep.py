"""Samplers of one and few steps: predict the clean sample, go to the next time, predict again."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn

from kdbench.tracks.diffusion.conditions import Condition
from kdbench.tracks.diffusion.networks.base import Denoiser, guided
from kdbench.tracks.diffusion.processes import Process, Time
from kdbench.tracks.diffusion.samplers.base import Sampler
from kdbench.tracks.diffusion.samplers.saving import load_network, save_network

if TYPE_CHECKING:
    from kdbench.tracks.diffusion.task import DiffusionTask

Mode = Literal["renoise", "jump", "cps"]


def next_state(
    process: Process,
    x: Tensor,
    x0: Tensor,
    t: Time,
    s: Time,
    mode: Mode,
    noise: Tensor | None,
    eta: float = 0.0,
) -> Tensor:
    """The state at time ``s`` after x_0 was predicted from ``x`` at ``t``.

    ``renoise``: x_0 with fresh noise (stochastic consistency sampling). ``jump``: DDIM. ``cps``: the implied noise and
    fresh noise in proportions cos and sin of eta pi / 2, which keeps the total level at every eta.
    """
    if mode == "jump":
        return process.jump(x, x0, t, s)
    assert noise is not None
    if mode == "renoise":
        return process.noised(x0, noise, s)
    implied = process.noise_from_x0(x, x0, t)
    angle = eta * math.pi / 2
    return process.noised(x0, math.cos(angle) * implied + math.sin(angle) * noise, s)


class FewStep(Sampler):
    """A denoiser, or one expert per step, at a few decreasing times."""

    kind = "few-step"

    def __init__(
        self,
        network: Denoiser | Sequence[Denoiser],
        times: Sequence[float],
        mode: Mode = "renoise",
        *,
        eta: float = 0.0,
        guidance: float = 1.0,
    ) -> None:
        """``network``: one for all times, or as many as ``times``. ``guidance``: scale w, 1 for none."""
        self.experts = list(network) if isinstance(network, Sequence) else [network] * len(times)
        self.times = [float(time) for time in times]
        if len(self.experts) != len(self.times) or not self.times:
            raise ValueError(f"{len(self.experts)} networks for {len(self.times)} times")
        if sorted(self.times, reverse=True) != self.times or self.times[-1] <= 0:
            raise ValueError(f"times decrease and are above 0, not {self.times}")
        self.mode: Mode = mode
        self.eta, self.guidance = eta, guidance

    @property
    def process(self) -> Process:
        return self.experts[0].process

    def draw(self, noise: Tensor, cond: Condition, generator: torch.Generator) -> tuple[Tensor, list[Tensor]]:
        x = self.process.prior(noise, self.times[0])
        states = [x]
        for number, (expert, t) in enumerate(zip(self.experts, self.times, strict=True)):
            x0 = guided(expert, x, t, cond, self.guidance)
            if number + 1 == len(self.times):
                return x0, [*states, x0]
            fresh = torch.randn(x.shape, generator=generator).to(x) if self.mode != "jump" else None
            x = next_state(self.process, x, x0, t, self.times[number + 1], self.mode, fresh, self.eta)
            states.append(x)
        raise AssertionError("there is at least one time")

    def networks(self) -> Mapping[str, nn.Module]:
        distinct = {id(expert): expert for expert in self.experts}
        return {f"step{number}": expert for number, expert in enumerate(distinct.values())}

    def save(self, folder: Path) -> None:
        names = {id(network): name for name, network in self.networks().items()}
        for name, network in self.networks().items():
            save_network(network, folder / name)
        state = {
            "experts": [names[id(expert)] for expert in self.experts],
            "times": self.times,
            "mode": self.mode,
            "eta": self.eta,
            "guidance": self.guidance,
        }
        (folder / "sampler.json").write_text(json.dumps(state) + "\n")

    @classmethod
    def load(cls, folder: Path, task: DiffusionTask) -> FewStep:
        state = json.loads((folder / "sampler.json").read_text())
        made = {name: load_network(folder / name, task) for name in set(state["experts"])}
        experts = [made[name] for name in state["experts"]]
        one = experts[0] if len(made) == 1 else experts
        return cls(one, state["times"], state["mode"], eta=state["eta"], guidance=state["guidance"])


def one_step(network: Denoiser, time: float) -> FewStep:
    """A generator that is called once, at ``time``."""
    return FewStep(network, [time])
