"""A score policy whose experts are known before it acts: they depend on the level alone (expert caching)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from kdbench.tracks.policy.blocks.edm import Scaling, ddim
from kdbench.tracks.policy.networks.chunk_transformer import ChunkTransformer
from kdbench.tracks.policy.networks.moe import Perceptron
from kdbench.tracks.policy.policies.chunks import Chunks

if TYPE_CHECKING:
    from kdbench.tracks.policy.task import PolicyTask
    from kdbench.tracks.policy.worlds.base import Observation


class ScoreChunks(Chunks):
    """Chunks by DDIM over an exponential schedule. Where experts are routed by noise, each level has one fused
    perceptron a block, made once and found by the index of the level in the schedule."""

    kind = "score-chunks"

    def __init__(
        self, network: ChunkTransformer, *, steps: int, build: Mapping[str, Any], cached: bool = True, **rest: Any
    ) -> None:
        """``build``: arguments of the network beside those of the task's student, so that it can be loaded."""
        super().__init__(network, **rest)
        self.steps, self.build, self.cached, self.scaling = steps, dict(build), cached, Scaling()
        self.sigmas = self.scaling.exponential(steps)
        self._made: dict[int, tuple[Tensor, list[Perceptron]]] = {}

    def settings(self) -> dict[str, Any]:
        return {**super().settings(), "steps": self.steps, "build": self.build, "cached": self.cached}

    @classmethod
    def network_for(cls, task: PolicyTask, state: Mapping[str, Tensor], settings: Mapping[str, Any]) -> nn.Module:
        network: nn.Module = task.kind.transformer(**settings["build"])  # type: ignore[attr-defined]
        return network

    def experts_at(self, index: int) -> tuple[Tensor, list[Perceptron]]:
        """The noise embedding (1, D) of a level of the schedule, and the fused perceptrons of all blocks."""
        if index not in self._made:
            device = next(self.network.parameters()).device
            level = (self.sigmas[index : index + 1].log() / 4).to(device)
            noise = self.network.embedding(level)
            self._made[index] = (noise, [block.mixture.fused(noise) for block in self.network.blocks])
        return self._made[index]

    def plan(self, window: Observation) -> Tensor:
        x = self.noise(window) * self.sigmas[0]
        seen = self.network.seen(window)
        for index in range(self.steps):
            options: dict[str, Any] = {"seen": seen}
            if self.cached and self.network.route == "noise":
                noise, fused = self.experts_at(index)
                options |= {"noise": noise.expand(len(window), -1), "fused": fused}
            sigma = self.sigmas[index].to(x.device)
            denoised = self.scaling.denoised(self.network, x, sigma.expand(len(x)), window, **options)
            x = ddim(x, denoised, sigma, self.sigmas[index + 1].to(x.device))
        return x
