"""``DDTask``: what a method of the track ``dataset_distillation`` receives."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from kdbench.errors import JobError
from kdbench.task import Scores, Task
from kdbench.track import Track
from kdbench.tracks.dataset_distillation import TRACK
from kdbench.tracks.dataset_distillation.blocks.epochs import Reals
from kdbench.tracks.dataset_distillation.blocks.labelling import Labelling
from kdbench.tracks.dataset_distillation.blocks.store import Store
from kdbench.tracks.dataset_distillation.blocks.trainer import epochs_of
from kdbench.tracks.dataset_distillation.distilled.base import Distilled
from kdbench.tracks.dataset_distillation.kinds import kind_of
from kdbench.tracks.dataset_distillation.kinds.base import Kind
from kdbench.tracks.dataset_distillation.spec import DDSpec
from kdbench.training.loaders import Order


class DDTask(Task):
    """One task of the track: real data, a budget of what may be kept of them, networks that know them.

    ``train`` returns a :class:`~kdbench.tracks.dataset_distillation.distilled.base.Distilled`. A *step* is one update
    of the distilled data, or of a network that a method trains for itself.
    """

    spec: DDSpec
    home: ClassVar[Track] = TRACK

    # --- data -----------------------------------------------------------------------------------------------------

    @cached_property
    def kind(self) -> Kind:
        """What the track does with data of this kind."""
        return kind_of(self.spec.data.kind)(self.spec, self.cache)

    @property
    def classes(self) -> int:
        return self.kind.classes

    @property
    def ipc(self) -> int:
        """Images per class that may be kept. Raises ``JobError`` for data that are no images."""
        return int(self._images("ipc", self.spec.data))

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of an image. Raises ``JobError`` for data that are no images."""
        shape: tuple[int, int, int] = self._images("shape", self.kind)
        return shape

    def _images(self, name: str, owner: Any) -> Any:
        if self.spec.data.kind != "images":
            raise JobError(f"{self.spec.name} has {self.spec.data.kind}, so that there is no {name}")
        return getattr(owner, name)

    @cached_property
    def range(self) -> tuple[Tensor, Tensor]:
        """Least and largest value of a channel, (C, 1, 1) each, on the task's device: black and white."""
        low, high = self._images("set", self.kind).range
        return low.to(self.device), high.to(self.device)

    def pixels(self, images: Tensor) -> Tensor:
        """Images (N, C, H, W) clamped to what a picture may have."""
        low, high = self.range
        return torch.maximum(torch.minimum(images.detach(), high), low)

    @cached_property
    def _splits(self) -> dict[str, Any]:
        return {}

    def split(self, name: str) -> Any:
        """``train``, ``val`` or ``test`` on the task's device. Test data raise ``TestDataError`` inside ``train``."""
        if name not in ("train", "val"):
            self.require_evaluation()
        if name not in self._splits:
            self._splits[name] = self.kind.split(name).to(self.device)
        return self._splits[name]

    def train_loader(self, batch_size: int | None = None, purpose: str = "data") -> Reals:
        """Batches of real training data in a new random order each epoch; metered as ``real_images``."""
        size = self.spec.recipe.batch_size if batch_size is None else batch_size
        split = self.split("train")
        order = Order(len(split), min(size, len(split)), self.generator(purpose), self.device)
        return Reals(split, order, self.meter_reals)

    def meter_reals(self, rows: int) -> None:
        """Record that so many real samples were looked at."""
        self.budget.spend("real_images", rows)

    # --- networks -------------------------------------------------------------------------------------------------

    def network(self, arch: str, purpose: str) -> Any:
        """A fresh network of any architecture of the track on the task's device, from the random stream ``purpose``."""
        with self.seeded(purpose):
            made = self.kind.build(arch)
        return self.place(made)

    def build_student(self) -> nn.Module:
        return self.kind.build(self.spec.student)

    def build_teacher(self) -> nn.Module:
        if not self.spec.committee:
            raise JobError(f"{self.spec.name} has no teacher")
        return self.kind.build(self.spec.committee[0])

    def load_teacher(self) -> nn.Module:
        if not self.spec.committee:
            raise JobError(f"{self.spec.name} has no teacher")
        return self.member(0)

    def member(self, number: int) -> nn.Module:
        """A network of the committee on the CPU: from the cache, or trained now."""
        key, arch = self.spec.committee_keys()[number], self.spec.committee[number]

        def make(folder: Path) -> None:
            started = time.perf_counter()
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(self.spec.teacher_seed + 1000 * key["number"])
                made = self.kind.build(arch)
            generator = torch.Generator().manual_seed(self.spec.teacher_seed + 1000 * key["number"] + 1)
            self.kind.fit_member(made, generator, self.device)
            state = {name: value.detach().cpu().contiguous() for name, value in made.state_dict().items()}
            save_file(state, folder / "model.safetensors")
            facts = {"arch": arch, "seconds": round(time.perf_counter() - started, 1)}
            (folder / "training.json").write_text(json.dumps(facts) + "\n")

        folder = self.cache.get("teacher", key, make)
        with torch.random.fork_rng(devices=[]):
            network = self.kind.build(arch)
        network.load_state_dict(load_file(folder / "model.safetensors"))
        return network.eval()

    @cached_property
    def _committee(self) -> list[Any]:
        return [self.teacher(), *(self.share(self.member(i)) for i in range(1, len(self.spec.committee)))]

    def committee(self) -> Sequence[Any]:
        """The networks that know the real data: frozen, in evaluation mode, shared, metered as ``teacher_queries``."""
        return self._committee if self.spec.committee else []

    # --- distilled sets -------------------------------------------------------------------------------------------

    def epochs(self, images: int) -> int:
        """Epochs over so many distilled images that a network of the evaluation learns for."""
        evaluation = self.spec.evaluation
        return epochs_of(images, evaluation.batch_size, evaluation.updates)

    def store(self, images: Tensor, classes: Tensor, labelling: Labelling, *, augmented: bool, seed: int) -> Store:
        """Images with labels, as networks of the evaluation learn from them; ``seed`` is that of stored views."""
        return Store(
            images,
            classes,
            labelling,
            self.committee() if labelling.members else [],
            batch_size=self.spec.evaluation.batch_size,
            augmented=augmented,
            flip=getattr(self.spec.data, "flip", False),
            seed=seed % 2**62,
        )

    def prepare(self) -> None:
        """Make the data, the committee, and the scores of the whole set and of random parts of it."""
        self.kind.split("train")
        for number in range(len(self.spec.committee)):
            self.member(number)
        phase, self.phase = self.phase, "evaluate"
        try:
            self.kind.references(self)
        finally:
            self.phase = phase

    # --- evaluation -----------------------------------------------------------------------------------------------

    def validate(self, model: Distilled) -> dict[str, float]:
        """Metrics on the validation split of a network that learns from the set; no cost of training."""
        spent = dict(self.budget.spent)
        try:
            return self.kind.validate(self, model)
        finally:
            self.budget.restore(spent)

    def score_test(self, model: Distilled) -> Scores:
        scores = self.kind.measure(self, model)
        wanted = [metric.name for metric in self.spec.all_metrics()]
        missing = [name for name in wanted if name not in scores.metrics]
        if missing:
            known = ", ".join(sorted(scores.metrics))
            raise JobError(
                f"{self.spec.name} names metrics that are not measured: {', '.join(missing)} (there: {known})"
            )
        return Scores({name: scores.metrics[name] for name in wanted}, scores.examples)

    def board_problems(self) -> list[str]:
        """Why the task is not informative: the whole set does not teach, or a random part of it teaches as much."""
        wanted = self.spec.gate
        if wanted is None:
            return []
        found, reasons = self.kind.references(self), list[str]()
        whole, random = found["whole"], found["random"]
        if whole < wanted.whole:
            reasons.append(f"training on the whole set gives {whole:.3f}, less than {wanted.whole:g}")
        if whole - random < wanted.gap:
            reasons.append(
                f"a random part gives {random:.3f}, less than {wanted.gap:g} below the whole set's {whole:.3f}"
            )
        return reasons

    # --- artifacts ------------------------------------------------------------------------------------------------

    def check(self, model: Any) -> None:
        self.require(model, Distilled)
        self.kind.check(self, model)

    def save(self, model: Distilled, folder: Path) -> None:
        """What the distilled set writes, and its kind."""
        self.check(model)
        folder.mkdir(parents=True, exist_ok=True)
        model.save(folder)
        (folder / "kdbench.json").write_text(json.dumps({"task": self.spec.name, "distilled": model.kind}) + "\n")

    def load(self, folder: Path) -> Distilled:
        """A distilled set that :meth:`save` wrote."""
        kind = json.loads((folder / "kdbench.json").read_text())["distilled"]
        return Distilled.of_kind(kind).load(folder, self)
