"""Points in the plane: mixtures of Gaussians, whose scores and densities are known."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from kdbench.cache import Cache
from kdbench.errors import Diverged
from kdbench.task import Scores
from kdbench.tracks.diffusion.conditions import Condition
from kdbench.tracks.diffusion.data.points import make_points, mixture_of
from kdbench.tracks.diffusion.evaluate import grids
from kdbench.tracks.diffusion.evaluate import points as measures
from kdbench.tracks.diffusion.kinds.base import Kind, Split
from kdbench.tracks.diffusion.networks.gmm import ExactDenoiser, Mixture
from kdbench.tracks.diffusion.samplers.base import Sampled, Sampler
from kdbench.tracks.diffusion.spec import DiffusionSpec, Exact
from kdbench.tracks.diffusion.teachers import process_of

if TYPE_CHECKING:
    from kdbench.tracks.diffusion.task import DiffusionTask

PATHS = 24
"""Trajectories in a picture."""
GROUND = 160
"""Points a side of the density in a picture."""


class Points(Kind):
    """A mixture in the plane; a condition is its class, where it has classes."""

    def __init__(self, spec: DiffusionSpec, cache: Cache) -> None:
        super().__init__(spec, cache)
        self.mixture: Mixture = mixture_of(spec.data)  # type: ignore[arg-type]
        """The data's distribution."""
        self.shape = (self.mixture.dim,)
        self.vocabulary = (self.mixture.classes + 1,) if self.mixture.classes else ()
        self.data_std = self.mixture.std

    # --- data -----------------------------------------------------------------------------------------------------

    def _condition(self, labels: Tensor) -> Condition:
        return Condition.of_tokens(labels) if self.vocabulary else Condition.none(len(labels))

    def make(self, name: str) -> Split:
        points, labels = make_points(self.spec.data, name)  # type: ignore[arg-type]
        return Split(points, self._condition(labels))

    def batches(self) -> Callable[[int, torch.Generator], tuple[Tensor, Condition]]:
        """As for other kinds; a network that is fitted to an exact teacher meets new points in every batch."""
        if not isinstance(self.spec.teacher, Exact):
            return super().batches()

        def batch(size: int, generator: torch.Generator) -> tuple[Tensor, Condition]:
            points, components = self.mixture.sample(size, generator)
            return points, self._condition(self.mixture.labels[components])

        return batch

    def exact(self) -> ExactDenoiser:
        return ExactDenoiser(mixture_of(self.spec.data), process_of(self.spec, self))  # type: ignore[arg-type]

    # --- measures -----------------------------------------------------------------------------------------------------

    @cached_property
    def bandwidth(self) -> float:
        """Of the kernel of ``mmd``."""
        return measures.mmd_bandwidth(self.mixture)

    def compare(self, sampled: Sampled, split: str) -> tuple[dict[str, float], dict[str, Tensor]]:
        """Measures of the samples for a split's evaluation noise, and values of each sample by name, (N,).

        Raises ``Diverged`` for samples that are not numbers.
        """
        x, whole = sampled.x.cpu(), self.split(split)
        if x.isnan().any():
            raise Diverged("samples are not numbers")
        rows = torch.arange(len(x)) % len(whole)
        real, cond = whole.x[rows], whole.cond[rows]
        reverse, forward = measures.kl_of_samples(x, self.mixture)
        modes = measures.modes_of(x, self.mixture)
        each = {"stray": modes.stray.double()}
        if cond.tokens is not None:
            each["class_accuracy"] = measures.class_accuracy(x, cond.tokens[:, 0], self.mixture)
        metrics = {
            "sw2": measures.sliced_w2(x, real),
            "mmd": measures.mmd(x, real, self.bandwidth),
            "kl_reverse": reverse,
            "kl_forward": forward,
            "modes": float(modes.hit.double().mean()),
            "mode_l1": modes.l1,
            "nfe": sampled.nfe,
            **{name: float(values.mean()) for name, values in each.items()},
        }
        return metrics, each

    def validate(self, task: DiffusionTask, sampler: Sampler) -> dict[str, float]:
        sampled = self.samples(sampler, task.spec.evaluation.val_samples, "val", task.device)
        return self.compare(sampled, "val")[0]

    def measure(self, task: DiffusionTask, sampler: Sampler) -> Scores:
        """sw2 and mmd to as many test points, kl_reverse and kl_forward (nats) to the mixture, modes (share of the
        modes that are hit), mode_l1, stray (share of points further than three standard deviations from every mode),
        class_accuracy where there are classes, and nfe. ``samples.json`` has all, and pictures show some.
        """
        sampled = self.samples(sampler, task.spec.evaluation.samples, "test", task.device)
        metrics, each = self.compare(sampled, "test")
        task.artifact("samples.json").write_text(json.dumps(metrics, indent=1) + "\n")
        grids.keep(task, self.pictures(task, sampled, Condition.none(len(sampled.x))))
        return Scores(metrics, {name: values.numpy() for name, values in each.items()})

    def pictures(self, task: DiffusionTask, sampled: Sampled, cond: Condition) -> Mapping[str, Any]:
        extent = 1.25 * float((self.mixture.means.abs().amax(1) + 3 * self.mixture.stds).max())
        axis = torch.linspace(-extent, extent, GROUND, dtype=torch.float64)
        y, x = torch.meshgrid(axis, axis, indexing="ij")
        plane = torch.stack([x.flatten(), y.flatten()], dim=1)
        density = self.mixture.log_density(plane).exp().reshape(GROUND, GROUND)
        paths = [state[:PATHS] for state in sampled.trajectory]
        return {
            "samples.png": grids.scatter(
                sampled.x, extent=extent, density=density, caption="Samples on the density of the data"
            ),
            "trajectory.png": grids.scatter(
                paths[-1], extent=extent, density=density, paths=paths, caption="From noise to samples"
            ),
        }
