"""What kinds of images have in common that classifiers score: Fréchet distance, precision, recall, accuracy."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor

from kdbench.cache import Cache
from kdbench.errors import Diverged, UsageError
from kdbench.task import Scores
from kdbench.tracks.diffusion.conditions import Condition
from kdbench.tracks.diffusion.evaluate import grids
from kdbench.tracks.diffusion.evaluate.classifiers import Judge, features_of, in_parts, predictions, stored
from kdbench.tracks.diffusion.evaluate.frechet import Moments, distance
from kdbench.tracks.diffusion.evaluate.neighbours import diversity, precision_recall
from kdbench.tracks.diffusion.evaluate.rewards import Reward
from kdbench.tracks.diffusion.kinds.base import Kind
from kdbench.tracks.diffusion.samplers.base import Sampled, Sampler

if TYPE_CHECKING:
    from kdbench.tracks.diffusion.spec import DiffusionSpec
    from kdbench.tracks.diffusion.task import DiffusionTask

Backbone = Literal["labels", "rotation"]
NEIGHBOURS = 3
NOISY = 0.7
"""Standard deviation of the noise on images that the judge of taste learns not to like."""
SMOOTHING = 0.1
"""Of its labels, so that a reward is no smaller than about -3."""


@dataclass
class Measured:
    """What samples are like."""

    metrics: dict[str, float]
    examples: dict[str, np.ndarray]
    """(N,) by metric."""


class Judged(Kind):
    """Images with labels that classifiers can read.

    The *evaluator* gives the features of Fréchet distances and the accuracies, and is no part of any method. Methods
    get other judges: :meth:`backbone` for features, :meth:`reward` for a reward.
    """

    classes: tuple[int, ...]
    """Of every label that judges read, one a slot of the tokens: label c is token c + 1."""

    def __init__(self, spec: DiffusionSpec, cache: Cache) -> None:
        super().__init__(spec, cache)
        self._judges: dict[str, Judge] = {}
        self._features: dict[str, Tensor] = {}

    @cached_property
    def data_std(self) -> float:  # type: ignore[override]
        """Of the training images, to two decimals."""
        return round(float(self.split("train").x.double().std()), 2)

    # --- judges -------------------------------------------------------------------------------------------------------

    def pleasing(self) -> Tensor:
        """(N,) int64, 1 for training images that are pleasing: what the judge of taste learns."""
        raise NotImplementedError

    def _lesson(self, role: str) -> tuple[Tensor, Tensor]:
        """Images and labels (N, L) that the judge of a role is trained on."""
        split = self.split("train")
        assert split.cond.tokens is not None
        if role == "rotation":
            turned = torch.cat([split.x.rot90(quarter, (-2, -1)) for quarter in range(4)])
            return turned, torch.arange(4).repeat_interleave(len(split))[:, None]
        if role == "taste":
            generator = torch.Generator().manual_seed(0)
            spoilt = split.x + NOISY * torch.randn(split.x.shape, generator=generator)
            pleasing = self.pleasing()
            return torch.cat([split.x, spoilt.clamp(-1, 1)]), torch.cat([pleasing, 0 * pleasing])[:, None]
        return split.x, split.cond.tokens - 1

    def _heads(self, role: str) -> tuple[int, ...]:
        return {"rotation": (4,), "taste": (2,)}.get(role, self.classes)

    def judge(self, role: str, device: torch.device) -> Judge:
        """The judge of a role: ``evaluator``, ``labels``, ``rotation`` or ``taste``. For evaluation."""
        if role not in self._judges:
            data: Any = self.spec.data
            self._judges[role] = stored(
                self.cache,
                data.judge_key(role),
                lambda: self._lesson(role),
                self._heads(role),
                self.shape,
                data.judges_of(role),
                role,
                SMOOTHING if role == "taste" else 0.0,
            )
        return self._judges[role].to(device)

    def backbone(self, pretext: Backbone, device: torch.device) -> Judge:
        """A frozen network whose features a method may use: it tells labels or quarter turns apart, and shares neither
        weights nor first weights with the evaluator. Gradients reach images, not weights.

        Raises ``UsageError`` for any other.
        """
        if pretext not in ("labels", "rotation"):
            raise UsageError(f"backbones are 'labels' and 'rotation', not {pretext!r}")
        return self.judge(pretext, device)

    def reward(
        self, device: torch.device, *, prompt: float = 0.0, contrast: float = 0.5, sharpness: float = 0.5
    ) -> Reward:
        """The differentiable reward; ``prompt``: weight of the prompt's log-probability, as ``backbone("labels")`` says
        it."""
        reader = self.backbone("labels", device) if prompt else None
        return Reward(self.judge("taste", device), reader, prompt=prompt, contrast=contrast, sharpness=sharpness).to(
            device
        )

    def prepare(self, task: DiffusionTask) -> None:
        data: Any = self.spec.data
        for role in data.roles():
            self.judge(role, task.device)

    # --- measures -----------------------------------------------------------------------------------------------------

    def reference(self, split: str, device: torch.device) -> Tensor:
        """(N, 64) the evaluator's features of a split."""
        if split not in self._features:
            self._features[split] = features_of(self.judge("evaluator", device), self.split(split).x)
        return self._features[split]

    def distance(self, x: Tensor, split: str, device: torch.device) -> float:
        """Fréchet distance of images to a split."""
        features = features_of(self.judge("evaluator", device), x.clamp(-1, 1))
        return distance(Moments.of(features), Moments.of(self.reference(split, device)))

    def floor(self, device: torch.device) -> float:
        """Fréchet distance of the training images to the test images: what a perfect generator is near to."""
        return distance(Moments.of(self.reference("train", device)), Moments.of(self.reference("test", device)))

    def right(self, x: Tensor, tokens: Tensor, device: torch.device) -> Tensor:
        """(N, L) 1 where the evaluator reads what the tokens (N, L) ask for, 0 where not, NaN where nothing is asked
        for or it is no label."""
        asked = (tokens >= 1) & (tokens <= torch.tensor(self.classes))
        found = (predictions(self.judge("evaluator", device), x.clamp(-1, 1)) + 1 == tokens).double()
        return torch.where(asked, found, torch.nan)

    def measured(self, x: Tensor, cond: Condition, split: str, device: torch.device) -> Measured:
        """fd, precision, recall, accuracy (of all slots), prompt_accuracy (mean of the slots), diversity (within one
        class), reward.

        Raises ``Diverged`` for samples that are not numbers.
        """
        assert cond.tokens is not None
        if x.isnan().any():
            raise Diverged("samples are not numbers")
        x, tokens = x.cpu().clamp(-1, 1), cond.tokens.cpu()
        features, reference = features_of(self.judge("evaluator", device), x), self.reference(split, device)
        k = min(NEIGHBOURS, len(x) - 1, len(reference) - 1)
        precision, recall = precision_recall(reference, features, k)
        right = self.right(x, tokens, device)
        whole = torch.where(right.isnan().all(1), torch.nan, (right.nan_to_num(1) == 1).double().all(1).double())
        rewards = torch.cat(in_parts(self.reward(device), x, device)).double()
        metrics = {
            "fd": distance(Moments.of(features), Moments.of(reference)),
            "precision": precision,
            "recall": recall,
            "accuracy": float(whole.nanmean()),
            "prompt_accuracy": float(right.nanmean()),
            "diversity": diversity(features, tokens[:, 0]),
            "reward": float(rewards.mean()),
        }
        examples = {"accuracy": whole, "prompt_accuracy": right.nanmean(1), "reward": rewards}
        return Measured(metrics, {name: value.numpy() for name, value in examples.items()})

    def validate(self, task: DiffusionTask, sampler: Sampler) -> dict[str, float]:
        """As :meth:`measure`, against the validation images; of few images, so that fd is larger."""
        count = task.spec.evaluation.val_samples
        with torch.no_grad():
            sampled = self.samples(sampler, count, "val", task.device)
            return self.measured(sampled.x, self.evaluation(count, "val")[1], "val", task.device).metrics

    @torch.no_grad()
    def measure(self, task: DiffusionTask, sampler: Sampler) -> Scores:
        """See :meth:`measured`; nfe, and fd_floor of real images. ``samples.json`` has all, and pictures show some."""
        count = task.spec.evaluation.samples
        sampled = self.samples(sampler, count, "test", task.device)
        cond = self.evaluation(count, "test")[1]
        found = self.measured(sampled.x, cond, "test", task.device)
        found.metrics |= {"nfe": sampled.nfe, "fd_floor": self.floor(task.device), **self.more(task, sampler)}
        task.artifact("samples.json").write_text(json.dumps(found.metrics, indent=1) + "\n")
        grids.keep(task, self.pictures(task, sampled, cond))
        return Scores(found.metrics, found.examples)

    def more(self, task: DiffusionTask, sampler: Sampler) -> dict[str, float]:
        """Metrics that need samples of their own."""
        return {}

    def pictures(self, task: DiffusionTask, sampled: Sampled, cond: Condition) -> Mapping[str, Any]:
        """Samples, a row a class, and the way from noise to some of them."""
        assert cond.tokens is not None
        side = task.spec.evaluation.grid
        chosen = grids.by_group(sampled.x, cond.tokens[:, 0], side)
        shown = sampled.x[: side * side] if not len(chosen) else chosen
        return {
            "samples.png": grids.tiles(shown, side, caption="Samples, a row a class" if len(chosen) else "Samples"),
            "trajectory.png": grids.way(sampled.trajectory, caption="From noise to samples, one step a column"),
        }
