"""What every kind of data has to say."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from kdbench.cache import Cache
from kdbench.errors import JobError
from kdbench.task import Scores, seed_of
from kdbench.tracks.diffusion.conditions import Condition
from kdbench.tracks.diffusion.processes import Process
from kdbench.tracks.diffusion.samplers.base import Sampled, Sampler

if TYPE_CHECKING:
    from kdbench.tracks.diffusion.spec import DiffusionSpec
    from kdbench.tracks.diffusion.task import DiffusionTask

BATCH = 500
"""Rows that are sampled at a time."""


@dataclass
class Split:
    """Samples of the data, with what they were conditioned on."""

    x: Tensor
    """(N, *shape) float32."""
    cond: Condition

    def __len__(self) -> int:
        return len(self.x)


class Kind:
    """One kind of data, bound to a task's specification and cache."""

    shape: tuple[int, ...]
    """Of a sample."""
    vocabulary: tuple[int, ...] = ()
    """Number of tokens of each slot of a condition, the null token 0 included; empty: no tokens."""
    image_channels: int = 0
    """Channels of the image in a condition; 0: none."""
    around: ClassVar[bool] = False
    """Whether denoisers work on the difference to that image; ``data_std`` is that of the difference then."""
    names: ClassVar[tuple[str, ...]] = ("train", "val", "test")
    process: Process | None = None
    """The process that a pretrained teacher brings; None: as the task says."""
    data_std: float = 0.5
    """Standard deviation of the samples, all values together."""

    def __init__(self, spec: DiffusionSpec, cache: Cache) -> None:
        self.spec, self.cache = spec, cache
        self._splits: dict[str, Split] = {}

    # --- data -----------------------------------------------------------------------------------------------------

    def make(self, name: str) -> Split:
        """A split, on the CPU; the same for the same specification."""
        raise NotImplementedError

    def split(self, name: str) -> Split:
        """A split, made once. Raises ``JobError`` for a name that there is not."""
        if name not in self._splits:
            if name not in self.names:
                raise JobError(f"{self.spec.name} has no split {name!r}; it has {', '.join(self.names)}")
            self._splits[name] = self.make(name)
        return self._splits[name]

    def conditions(self, count: int, generator: torch.Generator) -> Condition:
        """What ``count`` new samples are asked to be: conditions of training rows, drawn with replacement."""
        cond = self.split("train").cond
        return cond[torch.randint(len(cond), (count,), generator=generator)]

    def evaluation(self, count: int, split: str) -> tuple[Tensor, Condition]:
        """Noise (count, *shape) and conditions that samplers are evaluated on: the same for all methods and seeds.

        Conditions are those of the split's rows, in order, from the first on again where there are fewer.
        """
        rows = torch.arange(count) % len(self.split(split))
        generator = torch.Generator().manual_seed(seed_of(self.spec.name, "evaluation", split))
        return torch.randn(count, *self.shape, generator=generator), self.split(split).cond[rows]

    def batches(self) -> Callable[[int, torch.Generator], tuple[Tensor, Condition]]:
        """A function that gives clean samples and conditions for the training of a teacher."""
        split = self.split("train")

        def batch(size: int, generator: torch.Generator) -> tuple[Tensor, Condition]:
            rows = torch.randint(len(split), (size,), generator=generator)
            return split.x[rows], split.cond[rows]

        return batch

    def prepare(self, task: DiffusionTask) -> None:
        """What evaluation needs beside the teacher, such as a classifier, so that it is in the cache."""

    # --- teacher ----------------------------------------------------------------------------------------------------

    def exact(self) -> Any:
        """The denoiser that is known in closed form. Raises ``JobError`` where there is none."""
        raise JobError(f"the data of {self.spec.name} have no exact denoiser")

    # --- measures -----------------------------------------------------------------------------------------------------

    def samples(self, sampler: Sampler, count: int, split: str, device: torch.device) -> Sampled:
        """``count`` samples for the evaluation noise of a split; the trajectory is that of the first batch."""
        noise, cond = self.evaluation(count, split)
        generator = torch.Generator().manual_seed(seed_of(self.spec.name, "evaluation", "fresh", split))
        parts = []
        for start in range(0, count, BATCH):
            rows = slice(start, min(count, start + BATCH))
            parts.append(sampler.sample(noise[rows].to(device), cond[rows].to(device), generator))
        nfe = sum(part.nfe * len(part.x) for part in parts) / count
        return Sampled(torch.cat([part.x for part in parts]), nfe, parts[0].trajectory)

    def validate(self, task: DiffusionTask, sampler: Sampler) -> dict[str, float]:
        """Metrics against the validation data."""
        raise NotImplementedError

    def measure(self, task: DiffusionTask, sampler: Sampler) -> Scores:
        """All metrics against the test data; called in evaluation alone."""
        raise NotImplementedError

    def pictures(self, task: DiffusionTask, sampled: Sampled, cond: Condition) -> Mapping[str, Any]:
        """Pictures of samples and trajectories by file name, as Pillow images: :meth:`measure` leaves them among the
        job's artifacts (:func:`kdbench.tracks.diffusion.evaluate.grids.keep`), and the method's page shows them."""
        return {}
