"""Generators that know in how many steps they are used, and samplers with any of these numbers of steps."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from copy import copy
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from kdbench.errors import UsageError
from kdbench.tracks.diffusion.conditions import Condition
from kdbench.tracks.diffusion.networks import lora
from kdbench.tracks.diffusion.networks.base import Denoiser, Features, NetDenoiser
from kdbench.tracks.diffusion.networks.build import load_denoiser, save_denoiser
from kdbench.tracks.diffusion.processes import Time
from kdbench.tracks.diffusion.samplers.fewstep import FewStep

if TYPE_CHECKING:
    from kdbench.tracks.diffusion.task import DiffusionTask

UNIT = 3.0
"""The number that stands for n steps is log2(n) over this: 0 for one step, 1 for eight."""


class StepAware(Denoiser):
    """A denoiser with one low-rank adapter, whose conditioning reads the number of steps beside the time."""

    def __init__(self, base: NetDenoiser, steps: int = 1) -> None:
        """``base`` reads two conditioning numbers, or one: then the number of steps makes no difference."""
        super().__init__()
        self.base, self.steps = base, steps
        self.process, self.shape, self.channels = base.process, base.shape, base.channels

    @classmethod
    def around(
        cls, base: NetDenoiser, rank: int, alpha: float, generator: torch.Generator, *, aware: bool = True
    ) -> StepAware:
        """A new adapter on ``base``, which is frozen; with ``aware`` the number of steps is read, by new weights of
        zero. Nothing changes at first. Raises ``UsageError`` for networks that read no further number."""
        lora.add(base, rank=rank, alpha=alpha, generator=generator)
        if aware:
            conditioning = getattr(base.net, "conditioning", None)
            if conditioning is None:
                raise UsageError(f"a {type(base.net).__name__} cannot read the number of steps; leave that out")
            conditioning.add_number()
        return cls(base)

    def forward(
        self,
        x: Tensor,
        t: Time,
        cond: Condition | None = None,
        *,
        features: bool = False,
        steps: int | None = None,
    ) -> Tensor | tuple[Tensor, Features]:
        """As of a denoiser; ``steps`` defaults to :attr:`steps`."""
        times = torch.as_tensor(t, dtype=x.dtype, device=x.device).expand(len(x))
        asked = Condition.none(len(x)) if cond is None else cond
        scaled, number = self.base.inputs(x, times)
        conditioning: Any = getattr(self.base.net, "conditioning", None)
        if conditioning is not None and conditioning.numbers > 1:
            count = math.log2(self.steps if steps is None else steps) / UNIT
            number = torch.stack([number, torch.full_like(number, count)], 1)
        if not features:
            return self.base.output(x, self.base.net(scaled, number, asked).float(), times)
        out, maps = self.base.net(scaled, number, asked, features=True)
        return self.base.output(x, out.float(), times), maps

    def denoise(self, x: Tensor, t: Tensor, cond: Condition, features: bool) -> Tensor | tuple[Tensor, Features]:
        return self(x, t, cond, features=features)  # type: ignore[no-any-return]

    def at(self, steps: int) -> StepAware:
        """The same weights, used in ``steps`` steps."""
        view = copy(self)
        view.steps = steps
        return view

    def save(self, folder: Path) -> None:
        """Called by :func:`~kdbench.tracks.diffusion.networks.build.save_denoiser`."""
        save_denoiser(self.base, folder / "base")
        (folder / "steps.json").write_text(json.dumps({"steps": self.steps}) + "\n")

    @classmethod
    def load(cls, folder: Path) -> StepAware:
        """Read what :meth:`save` wrote, on the CPU."""
        base = load_denoiser(folder / "base")
        assert isinstance(base, NetDenoiser)
        return cls(base, json.loads((folder / "steps.json").read_text())["steps"])


class AnySteps(FewStep):
    """Jumps along some of the times of a grid, for several numbers of steps: with one network, or one for each."""

    kind = "any-steps"

    def __init__(self, members: Mapping[int, StepAware], grid: Sequence[float], steps: int) -> None:
        """``members``: the network of each number of steps. ``grid``: (N + 1) times, decreasing to 0.

        Raises ``UsageError`` where there is no network for ``steps``, or N is no multiple of a number of steps.
        """
        if steps not in members:
            raise UsageError(f"there are networks for {', '.join(map(str, sorted(members)))} steps, not for {steps}")
        wrong = [count for count in members if (len(grid) - 1) % count]
        if wrong:
            raise UsageError(f"{len(grid) - 1} steps of a grid are no multiple of {wrong[0]}")
        self.members, self.grid, self.steps = dict(members), [float(time) for time in grid], steps
        super().__init__(members[steps].at(steps), self.grid[:-1][:: (len(grid) - 1) // steps], "jump")

    def at(self, steps: int) -> AnySteps:
        """The same networks with another number of steps."""
        return AnySteps(self.members, self.grid, steps)

    def save(self, folder: Path) -> None:
        distinct = list({id(network): network for network in self.members.values()}.values())
        for number, network in enumerate(distinct):
            save_denoiser(network, folder / f"member{number}")
        places = {count: distinct.index(network) for count, network in self.members.items()}
        state = {"members": places, "grid": self.grid, "steps": self.steps}
        (folder / "sampler.json").write_text(json.dumps(state) + "\n")

    @classmethod
    def load(cls, folder: Path, task: DiffusionTask) -> AnySteps:
        state = json.loads((folder / "sampler.json").read_text())
        places = {int(count): place for count, place in state["members"].items()}
        made = {place: task.place(load_denoiser(folder / f"member{place}")).eval() for place in set(places.values())}
        return cls({count: made[place] for count, place in places.items()}, state["grid"], state["steps"])
