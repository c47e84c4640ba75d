"""Labelled images."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdbench.cache import Cache
from kdbench.errors import ArtifactError, JobError
from kdbench.task import Scores
from kdbench.tracks.dataset_distillation.blocks.choose import random_rows
from kdbench.tracks.dataset_distillation.blocks.epochs import real_epochs
from kdbench.tracks.dataset_distillation.data import images as data
from kdbench.tracks.dataset_distillation.data.specs import ImagesData
from kdbench.tracks.dataset_distillation.distilled.base import Distilled
from kdbench.tracks.dataset_distillation.distilled.images import ImageSet
from kdbench.tracks.dataset_distillation.distilled.whole import Whole
from kdbench.tracks.dataset_distillation.evaluate import images as scoring
from kdbench.tracks.dataset_distillation.kinds.base import Kind
from kdbench.tracks.dataset_distillation.networks.build import build
from kdbench.training.loop import rate

if TYPE_CHECKING:
    from kdbench.tracks.dataset_distillation.spec import DDSpec
    from kdbench.tracks.dataset_distillation.task import DDTask


class ImagesKind(Kind):
    """Images of :mod:`kdbench.tracks.dataset_distillation.data.images`, of which ``ipc`` a class may be kept."""

    def __init__(self, spec: DDSpec, cache: Cache) -> None:
        super().__init__(spec, cache)
        assert isinstance(spec.data, ImagesData)
        self.data = spec.data
        self.set = data.load(spec.data, cache)
        self.classes = self.set.classes
        self.shape = self.set.shape

    @property
    def budget(self) -> int:
        """Numbers that a distilled set may keep as images and perturbations."""
        c, h, w = self.shape
        return self.data.ipc * self.classes * c * h * w

    def split(self, name: str) -> data.Images:
        if name not in self.set.splits:
            raise JobError(f"{self.spec.name} has no split {name!r}; it has {', '.join(self.set.splits)}")
        return self.set.splits[name]

    def build(self, arch: str) -> nn.Module:
        return build(arch, self.shape, self.classes)

    @torch.enable_grad()
    def fit_member(self, network: nn.Module, generator: torch.Generator, device: torch.device) -> None:
        recipe, train = self.spec.training, self.split("train").to(device)
        batches = -(-len(train) // recipe.batch_size)
        total, schedule = (
            recipe.epochs * batches,
            self.spec.recipe.model_copy(update={"schedule": "cosine", "warmup": 0.0}),
        )
        optimizer: torch.optim.Optimizer
        if recipe.optimizer == "sgd":
            optimizer = torch.optim.SGD(
                network.parameters(),
                lr=recipe.lr,
                momentum=recipe.momentum,
                nesterov=recipe.momentum > 0,
                weight_decay=recipe.weight_decay,
            )
        else:
            optimizer = torch.optim.AdamW(network.parameters(), lr=recipe.lr, weight_decay=recipe.weight_decay)
        network.to(device).train()
        epochs = real_epochs(train, recipe.epochs, recipe.batch_size, generator, flip=self.data.flip)
        for step, batch in enumerate(epochs):
            for group in optimizer.param_groups:
                group["lr"] = recipe.lr * rate(step, total, schedule)
            optimizer.zero_grad(set_to_none=True)
            F.cross_entropy(network(batch.x).float(), batch.y).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        network.eval()

    # --- distilled sets ---------------------------------------------------------------------------------------------

    def check(self, task: DDTask, distilled: Distilled) -> None:
        if isinstance(distilled, Whole):
            return
        if not isinstance(distilled, ImageSet):
            raise ArtifactError(
                f"train returned a {type(distilled).__name__}, but {self.spec.name} evaluates an ImageSet of images"
            )
        images, classes = distilled.images(), distilled.classes()
        if images.dim() != 4 or tuple(images.shape[1:]) != self.shape or len(images) != len(classes):
            raise ArtifactError(
                f"the set has images of shape {tuple(images.shape)} and {len(classes)} labels, expected (N, "
                f"{', '.join(map(str, self.shape))}) and N"
            )
        if not len(classes) or int(classes.min()) < 0 or int(classes.max()) >= self.classes:
            raise ArtifactError(f"labels of the set are whole numbers from 0 to {self.classes - 1}, at least one")
        if not bool(torch.isfinite(images).all()):
            raise ArtifactError("the set has values that are NaN or infinite")
        self._check_range(distilled.base)
        if any(not 0 <= member < len(self.spec.committee) for member in distilled.labelling.members):
            raise ArtifactError(f"the committee of {self.spec.name} has {len(self.spec.committee)} members, from 0 on")
        kept = distilled.floats(task)["data"]
        if kept > self.budget:
            raise ArtifactError(
                f"the set keeps {kept} numbers, but {self.data.ipc} images for each of {self.classes} classes are "
                f"{self.budget}"
            )

    def _check_range(self, images: Tensor) -> None:
        low, high = (bound.to(images.device) for bound in self.set.range)
        if bool((images < low - 1e-3).any()) or bool((images > high + 1e-3).any()):
            raise ArtifactError(
                "images are brighter than white or darker than black: clamp them with task.pixels(images)"
            )

    def whole(self, task: DDTask) -> Whole:
        return Whole()

    def whole_floats(self, task: DDTask) -> Mapping[str, int]:
        return {"data": self.split("train").x.numel(), "labels": 0}

    def random(self, task: DDTask, generator: torch.Generator) -> ImageSet:
        train = self.split("train").to(task.device)
        chosen = train.take(random_rows(train.y, self.data.ipc, generator))
        return ImageSet(chosen.x, chosen.y)

    # --- scores -----------------------------------------------------------------------------------------------------

    def references(self, task: DDTask) -> dict[str, float]:
        return scoring.references(task)

    def validate(self, task: DDTask, distilled: Distilled) -> dict[str, float]:
        return scoring.validate(task, distilled)

    def measure(self, task: DDTask, distilled: Distilled) -> Scores:
        return scoring.measure(task, distilled)
