"""Solvers of the probability flow: many steps of a denoiser without fresh noise."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn

from kdbench.tracks.diffusion.conditions import Condition
from kdbench.tracks.diffusion.networks.base import Denoiser, guided
from kdbench.tracks.diffusion.processes import Time
from kdbench.tracks.diffusion.samplers.base import Sampler
from kdbench.tracks.diffusion.samplers.saving import load_network, save_network

if TYPE_CHECKING:
    from kdbench.tracks.diffusion.task import DiffusionTask

Method = Literal["heun", "euler"]


def euler_step(network: Denoiser, x: Tensor, t: Time, s: Time, cond: Condition, w: Time = 1.0) -> Tensor:
    """One DDIM step from ``t`` to ``s``: of first order in the level."""
    return network.process.jump(x, guided(network, x, t, cond, w), t, s)


def heun_step(network: Denoiser, x: Tensor, t: float, s: float, cond: Condition, w: Time = 1.0) -> Tensor:
    """One step of second order (Karras et al., NeurIPS 2022, algorithm 1), in the scaled state x / alpha.

    In that state all processes have the same flow, dx = (x - D) / level dlevel. From a time where alpha is 0 and to the
    clean time it is a step of first order.
    """
    process = network.process
    first = guided(network, x, t, cond, w)
    reached = process.jump(x, first, t, s)
    if s == 0 or float(process.alpha(t)) == 0:
        return reached
    a_t, a_s = float(process.alpha(t)), float(process.alpha(s))
    l_t, l_s = float(process.level(t)), float(process.level(s))
    second = guided(network, reached, s, cond, w)
    slope = ((x / a_t - first) / l_t + (reached / a_s - second) / l_s) / 2
    return a_s * (x / a_t + (l_s - l_t) * slope)


class Solver(Sampler):
    """A denoiser along decreasing times, the last of them 0."""

    kind = "solver"

    def __init__(
        self, network: Denoiser, times: Sequence[float], method: Method = "heun", *, guidance: float = 1.0
    ) -> None:
        self.network = network
        self.times = [float(time) for time in times]
        if sorted(self.times, reverse=True) != self.times or len(self.times) < 2 or self.times[-1] != 0:
            raise ValueError(f"times decrease to 0, not {self.times}")
        self.method: Method = method
        self.guidance = guidance

    def draw(self, noise: Tensor, cond: Condition, generator: torch.Generator) -> tuple[Tensor, list[Tensor]]:
        x = self.network.process.prior(noise, self.times[0])
        states, step = [x], heun_step if self.method == "heun" else euler_step
        for t, s in zip(self.times, self.times[1:], strict=False):
            x = step(self.network, x, t, s, cond, self.guidance)
            states.append(x)
        return x, states

    def networks(self) -> Mapping[str, nn.Module]:
        return {"network": self.network}

    def save(self, folder: Path) -> None:
        save_network(self.network, folder / "network")
        state = {"times": self.times, "method": self.method, "guidance": self.guidance}
        (folder / "sampler.json").write_text(json.dumps(state) + "\n")

    @classmethod
    def load(cls, folder: Path, task: DiffusionTask) -> Solver:
        state = json.loads((folder / "sampler.json").read_text())
        network = load_network(folder / "network", task)
        return cls(network, state["times"], state["method"], guidance=state["guidance"])
