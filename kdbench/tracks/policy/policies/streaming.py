"""A buffer of actions at rising levels of noise: the nearest is clean, the farthest is noise (Streaming Diffusion)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from kdbench.errors import JobError
from kdbench.tracks.policy.blocks.ddpm import Ddpm
from kdbench.tracks.policy.policies.chunks import Chunks

if TYPE_CHECKING:
    from kdbench.tracks.policy.worlds.base import Observation


def chunks_of(horizon: int, observed: int, executed: int) -> int:
    """h = floor((T_p - (T_o - 1)) / T_a), the chunks of a buffer. Raises ``JobError`` where there is none."""
    count = (horizon - (observed - 1)) // executed
    if count < 1:
        raise JobError(f"{horizon} positions hold no chunk of {executed} actions after {observed} observations")
    return count


def chunk_index(horizon: int, observed: int, executed: int) -> Tensor:
    """(T_p,) int64: the chunk of each position. What lies before the first belongs to it, what remains to the last."""
    count = chunks_of(horizon, observed, executed)
    return ((torch.arange(horizon) - (observed - 1)) // executed).clamp(0, count - 1)


def chunk_levels(levels: int, horizon: int, observed: int, executed: int) -> Tensor:
    """(T_p,) int64: floor(N (i + 1) / h) - 1 of the chunk i of each position."""
    index, count = chunk_index(horizon, observed, executed), chunks_of(horizon, observed, executed)
    return levels * (index + 1) // count - 1


def training_levels(
    count: int, levels: int, horizon: int, observed: int, executed: int, chunked: float, generator: torch.Generator
) -> Tensor:
    """(B, T_p) levels of training rows.

    A row has, with probability ``chunked``, the levels of its chunks less j, uniform in 0 to floor(N / h) - 1; else
    one level for all positions, uniform in 0 to N - 1.
    """
    top = chunk_levels(levels, horizon, observed, executed)
    span = max(1, levels // chunks_of(horizon, observed, executed))
    less = torch.randint(span, (count, 1), generator=generator)
    same = torch.randint(levels, (count, 1), generator=generator)
    which = torch.rand(count, 1, generator=generator) < chunked
    return torch.where(which, top - less, same.expand(-1, horizon))


class Streaming(Chunks):
    """Denoises its whole buffer until the first chunk is clean, executes that, and appends noise at the end.

    Positions before the newest observation keep what was executed, with new noise of the first chunk's level.
    """

    kind = "streaming"

    def __init__(
        self,
        network: nn.Module,
        *,
        levels: int,
        solver: Literal["ddpm", "ddim"] = "ddpm",
        start: Literal["zero", "denoise"] = "zero",
        **rest: Any,
    ) -> None:
        """``start``: the first buffer is of zeros with noise, or of actions denoised at once that get noise again."""
        super().__init__(network, **rest)
        self.levels, self.solver, self.start, self.schedule = levels, solver, start, Ddpm(levels)
        self.top = chunk_levels(levels, self.horizon, self.observed, self.executed)
        self.chunks = chunks_of(self.horizon, self.observed, self.executed)
        self.evaluations: list[int] = []
        """Evaluations for each chunk since the episodes began."""

    def settings(self) -> dict[str, Any]:
        return {**super().settings(), "levels": self.levels, "solver": self.solver, "start": self.start}

    def reset(self, n: int, generator: torch.Generator) -> None:
        super().reset(n, generator)
        self._buffer: Tensor | None = None
        self.evaluations = []

    def plan(self, window: Observation) -> Tensor:
        self._count = 0
        if self._buffer is None:
            x, level = self._first(window), self.top.clone()
        else:
            x, level = self._shifted(window)
        first = self.observed - 1
        while int(level[first]) >= 0:
            x, level = self._denoised(x, level, window)
        self._buffer, self._level = x, level
        self.evaluations.append(self._count)
        return x

    def _denoised(self, x: Tensor, level: Tensor, window: Observation) -> tuple[Tensor, Tensor]:
        """One evaluation: every position goes down one level, from its own; clean ones stay."""
        here = level.to(x.device).expand(len(x), -1)
        predicted = self.network(x, here.clamp_min(0), window)
        self._count += 1
        if self.solver == "ddpm":
            x = self.schedule.step(x, predicted, here, self.noise(window))
        else:
            x = self.schedule.jump(x, predicted, here, (here - 1).clamp_min(-1))
        return x, (level - 1).clamp_min(-1)

    def _first(self, window: Observation) -> Tensor:
        noise = self.noise(window)
        clean = torch.zeros_like(noise)
        if self.start == "denoise":
            x, level = noise, torch.full((self.horizon,), self.levels - 1)
            while int(level[0]) >= 0:
                x, level = self._denoised(x, level, window)
            clean, noise = x, self.noise(window)
        top = self.top.to(noise.device)
        noised = self.schedule.noised(clean, noise, top.expand(len(noise), -1))
        return torch.where((top == self.levels - 1)[:, None], noise, noised)  # the last chunk begins as pure noise

    def _shifted(self, window: Observation) -> tuple[Tensor, Tensor]:
        """The buffer without the executed chunk; the rest that fills no chunk is drawn anew with the last one."""
        assert self._buffer is not None
        past = self.observed - 1
        kept = past + self.executed * (self.chunks - 1)
        x = self._buffer[:, self.executed : self.executed + kept]
        fresh = self.noise(window, self.horizon - kept)
        level = torch.cat([self._level[self.executed :][:kept], torch.full((self.horizon - kept,), self.levels - 1)])
        x = torch.cat([x, fresh], 1)
        if past:
            level[:past] = level[past]
            here = level[:past].to(x.device).expand(len(x), -1)
            x = torch.cat([self.schedule.noised(x[:, :past], self.noise(window, past), here), x[:, past:]], 1)
        return x, level
