"""``VisionTask``: what a method of the vision track receives."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdbench.errors import ArtifactError, JobError, OverBudget, TestDataError, did_you_mean
from kdbench.task import Scores, Task
from kdbench.track import Track
from kdbench.tracks.vision import TRACK, data, metrics, saving, spaces, streams, teachers
from kdbench.tracks.vision.batches import Batch, Batches, Split
from kdbench.tracks.vision.derived import FewClass, LongTail, MultiDomain, PseudoDomain, Webly
from kdbench.tracks.vision.models import Classifier, Taps, build
from kdbench.tracks.vision.models.adaptive import Adaptive
from kdbench.tracks.vision.models.clients import Clients
from kdbench.tracks.vision.spec import VisionSpec

TELLING = ("shape", "texture")
"""Metadata that tells the class."""
NEVER = ("number",)
"""Metadata that serves to make an image again; its number alone tells the class."""


class VisionTask(Task):
    """Image classification: in-memory splits, a student, a teacher or several, and the official metrics.

    Splits that ``train`` may read: ``train`` (the student's data), ``labeled`` and ``unlabeled`` (its two parts),
    ``val``, and where the data set has them ``pool`` (images that only the teacher can label) and ``proxy``
    (contributions of all clients). A label of -1 is one that the method does not get.
    """

    spec: VisionSpec

    home: ClassVar[Track] = TRACK

    def __init__(self, spec: VisionSpec, **rest: Any) -> None:
        super().__init__(spec, **rest)
        self._dataset: data.Dataset | None = None
        self._stream: streams.Files | None = None
        self._splits: dict[str, Split] = {}
        self._others: dict[str, nn.Module] = {}
        self._sources: dict[str, tuple[Classifier, str]] = {}
        self._tables: dict[str, Tensor] = {}
        self._counting: teachers.CountingTeacher | None = None
        self._space: spaces.Space | None = None
        self._metering = True

    # --- data -----------------------------------------------------------------------------------------------------

    @property
    def _data(self) -> data.Dataset:
        if self._dataset is None:
            self._dataset = data.load(self.spec.data, self.cache)
        return self._dataset

    @property
    def num_classes(self) -> int:
        return self._data.classes

    @property
    def limited(self) -> bool:
        """Whether answers of the teacher are rationed (``limits: {teacher_queries: ...}``)."""
        return "teacher_queries" in self.spec.limits

    @property
    def _files(self) -> streams.Files | None:
        """Where the images of streamed data are decoded from."""
        if self.spec.data.stream and self._stream is None:
            self._stream = streams.Files(data.hf.open_folder(self.spec.data)[0])
        return self._stream

    def _stored(self) -> list[str]:
        """Splits with images of their own that ``train`` may read, in the order of their identities."""
        return ["train", *sorted(name for name in self._data.sizes if name in ("pool", "proxy")), "val"]

    def _offset(self, split: str) -> int:
        names = self._stored()
        return sum(self._data.sizes[name] for name in names[: names.index(split)])

    def split(self, name: str) -> Split:
        """A split on the task's device. Test data raise ``TestDataError`` inside ``train``, unknown names ``JobError``.

        Metadata never tell a hidden or a wrong label: where a split has one, shape and texture are left out.
        """
        if name in self._splits:
            if self._is_test(name):
                self.require_evaluation()
            return self._splits[name]
        if name in ("labeled", "unlabeled"):
            train = self.split("train")
            made = train.take((train.y >= 0) if name == "labeled" else (train.y < 0))
        elif name in self._data.sizes:
            if self._is_test(name):
                self.require_evaluation()
            arrays = self._data.arrays(name)
            hidden = NEVER if np.array_equal(arrays.y, arrays.truth) else (*NEVER, *TELLING)
            arrays.meta = {key: values for key, values in arrays.meta.items() if key not in hidden}
            offset = 0 if self._is_test(name) else self._offset(name)
            made = teachers.to_split(arrays, device=self.device, offset=offset, files=self._files)
        else:
            known = sorted({*self._data.sizes, "labeled", "unlabeled"})
            raise JobError(f"{self.spec.name} has no split {name!r}; {did_you_mean(name, known, label='splits')}")
        self._splits[name] = made
        return made

    @staticmethod
    def _is_test(name: str) -> bool:
        return name == "test" or name.startswith("ood_")

    def truth(self, split: str) -> Tensor:
        """(N,) true classes of a split, -1 for images of no class. Raises ``TestDataError`` inside ``train``."""
        self.require_evaluation()
        names = {"labeled": "train", "unlabeled": "train"}
        true = torch.from_numpy(self._data.arrays(names.get(split, split)).truth).to(self.device)
        if split in names:
            y = self.split("train").y
            return true[y >= 0] if split == "labeled" else true[y < 0]
        return true

    def pool_truth(self) -> Tensor:
        """(N,) true classes of the pool. Raises ``TestDataError`` inside ``train``."""
        return self.truth("pool")

    def teacher_split(self, which: str = "default") -> Split:
        """The labelled images that a teacher was trained on: for methods that train a teacher anew, or further.

        A student never learns from them. Identities are -1: nothing about them is stored. Raises ``JobError`` where
        the task is about having no such data, ``OverBudget`` where the teacher's answers are limited.
        """
        if isinstance(self.spec.data.derive, Webly):
            raise JobError(f"{self.spec.name} has no original data: its teacher cannot be trained further")
        if self.limited:
            raise OverBudget("the teacher of this task answers a limited number of queries and cannot be trained")
        own = data.teacher_data(self.spec.data, self.cache, self._teacher_spec(which).target)
        split = teachers.to_split(own.arrays("train"), device=self.device, files=self._files)
        return Split(split.x, split.y, torch.full_like(split.index, -1), {})

    def train_loader(
        self,
        split: str | Split = "train",
        batch_size: int | None = None,
        augment: bool | None = None,
        indices: Tensor | Sequence[int] | None = None,
        purpose: str = "data",
    ) -> Batches | streams.StreamBatches:
        """Batches of a split in a new random order each epoch; the last batch of an epoch may be smaller.

        ``indices`` are positions in the split to draw from. ``augment`` changes each image as the task's ``augment``
        says, or rolls it by up to 2 pixels where the task names none; by default as the task says. ``purpose`` names
        the random stream: loaders with the default give every method the same order.
        """
        part = self.split(split) if isinstance(split, str) else split
        if indices is not None:
            part = part.take(torch.as_tensor(indices, device=self.device))
        size = self.spec.recipe.batch_size if batch_size is None else batch_size
        how = self.spec.augment
        changed = how != "none" if augment is None else augment
        if isinstance(part.x, streams.Stream):
            return streams.StreamBatches(part, size, self.generator(purpose), augment=changed)
        return Batches(part, size, self.generator(purpose), augment=changed, how="roll" if how == "none" else how)

    # --- models ---------------------------------------------------------------------------------------------------

    def _build(self, arch: str, *, pretrained: bool = False) -> Classifier:
        return build(arch, self.num_classes, self.spec.data.size, pretrained=pretrained)

    def build_student(self) -> Classifier:
        return self._build(self.spec.student.arch, pretrained=self.spec.student.pretrained)

    def student(self, arch: str | None = None) -> Classifier:
        """A new student on the task's device, or a network of another architecture; equal weights for one seed."""
        if arch is None:
            return super().student()
        with self.seeded("init"):
            model = self._build(arch)
        return model.to(self.device)

    def _count_query(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self._metering:
            super()._count_query(module, args, kwargs)

    def _logits(self, model: nn.Module, x: Tensor) -> Tensor:
        """Logits for an evaluation: the teacher may be evaluated like any network, at no query."""
        self._metering = False
        try:
            return teachers.logits_of(model, x)
        finally:
            self._metering = True

    def _teacher_spec(self, which: str) -> Any:
        known = self.spec.all_teachers()
        if which not in known:
            hint = "the task has no teacher" if not known else did_you_mean(which, list(known), label="teachers")
            raise JobError(f"{self.spec.name} has no teacher {which!r}; {hint}")
        return known[which]

    def load_teacher(self, which: str = "default") -> Classifier:
        self._teacher_spec(which)
        return teachers.load(self.spec, which, self.cache, self.device, self.num_classes)

    def build_teacher(self) -> Classifier:
        return self._build(self._teacher_spec("default").arch)

    def prepare(self) -> None:
        """Make the data, every teacher and the table of accuracies, so that they are in the cache."""
        _ = self._data
        for which in self.spec.all_teachers():
            self.load_teacher(which)
        if self.spec.search is not None:
            self._rows()

    def teacher(self, which: str = "default", *, trainable: bool = False) -> Classifier:
        """A teacher of the task: frozen, in eval mode and shared; or a private trainable copy.

        Samples that go through the shared one are metered as ``teacher_queries``. Where these are limited there is
        no private copy: asking for one raises ``OverBudget``.
        """
        if trainable and self.limited:
            raise OverBudget("the teacher of this task answers a limited number of queries and cannot be copied")
        if which == "default":
            self._teacher_spec(which)
            return super().teacher(trainable=trainable)
        if trainable:
            return self.place(self.load_teacher(which)).requires_grad_(True).train()
        if which not in self._others:
            self._others[which] = self.share(self.load_teacher(which))
        return self._others[which]

    # --- search spaces ------------------------------------------------------------------------------------------------

    @property
    def space(self) -> spaces.Space:
        """The students that a search may choose from. Raises ``JobError`` where the task has no search space."""
        if self.spec.search is None:
            raise JobError(f"{self.spec.name} has no search space; tasks of the family search have one")
        if self._space is None:
            self._space = spaces.Space(self.spec.search, self.num_classes, self.spec.data.size)
        return self._space

    def _rows(self) -> list[spaces.Row]:
        def make(seed: int, folder: Path) -> VisionTask:
            return VisionTask(self.spec, seed=seed, method="table", folder=folder, cache=self.cache, device=self.device)

        return spaces.load_table(self.spec, self.cache, self.space, make)

    def trained(self, split: str = "val") -> dict[str, tuple[float, float]]:
        """Top-1 of the networks in the table, (by labels alone, distilled), on ``val`` or ``test``, by architecture.

        Raises ``TestDataError`` for ``test`` inside ``train``.
        """
        if self._is_test(split):
            self.require_evaluation()
        return {row.arch: (row.vanilla[split], row.distilled[split]) for row in self._rows()}

    # --- teacher outputs ------------------------------------------------------------------------------------------

    def _outputs(self, split: str, which: str = "default") -> Tensor:
        """(N, C) logits of a teacher on a stored split, computed once for all jobs; not metered."""
        if which not in self._sources:
            loaded = self.load_teacher(which).to(self.device)
            self._sources[which] = (loaded, teachers.weights_digest(loaded))
        model, weights = self._sources[which]
        content = self._data.digests[split]
        made = teachers.outputs(model, weights, content, split, lambda: self.split(split).x, self.cache)
        return made.to(self.device)

    def _table(self, which: str) -> Tensor:
        """(N, C) logits of a teacher on all images that ``train`` may read, by identity."""
        if which not in self._tables:
            self._tables[which] = torch.cat([self._outputs(split, which) for split in self._stored()])
        return self._tables[which]

    def _counter(self) -> teachers.CountingTeacher:
        """The rationed teacher; what it says about images with a visible label is free."""
        if self._counting is None:
            counting = teachers.CountingTeacher(self._table("default"), self.budget)
            counting.known = torch.cat([self.split(name).y >= 0 for name in self._stored()])
            self._counting = counting
        return self._counting

    @torch.no_grad()
    def teacher_logits(self, batch: Batch, which: str = "default") -> Tensor:
        """(B, C) float32 logits of a teacher: stored ones for images as they are in the task, else computed now.

        Metered as ``teacher_queries``. Where these are limited, images with a hidden label cost one query each when
        they are first asked for, and labelled ones none.
        """
        if batch.augmented or bool((batch.index < 0).any()):
            return self.teacher(which)(batch.x).float()
        if self.limited and which == "default":
            return self._counter()(batch.index)
        self.budget.spend("teacher_queries", len(batch))
        return self._table(which)[batch.index]

    @torch.no_grad()
    def teacher_taps(self, batch: Batch, which: str = "default") -> Taps:
        """Representations of a teacher on a batch, computed now; metered as ``teacher_queries``."""
        self.budget.spend("teacher_queries", len(batch))
        return self.teacher(which).taps(batch.x)

    def answers(self, network: Classifier) -> Callable[[Batch], Tensor]:
        """What a teacher that the method made says about batches: (B, C) float32 logits, without gradients.

        The network is frozen. Images of ``train`` as they are in the task have stored answers, computed here; others
        are computed when asked for. All are metered as ``teacher_queries``.
        """
        teacher = self.share(network)
        table = self._logits(teacher, self.split("train").x)

        @torch.no_grad()
        def ask(batch: Batch) -> Tensor:
            if batch.augmented or bool(((batch.index < 0) | (batch.index >= len(table))).any()):
                return teacher(batch.x).float()
            self.budget.spend("teacher_queries", len(batch))
            return table[batch.index]

        return ask

    def query(self, positions: Tensor | Sequence[int]) -> Tensor:
        """(n, C) logits of the teacher for positions of the split ``pool``; each new image costs one query.

        Raises ``OverBudget`` past the limit ``teacher_queries``, ``IndexError`` for positions outside of the pool.
        """
        if "pool" not in self._data.sizes:
            raise JobError(f"{self.spec.name} has no pool to query")
        rows = torch.as_tensor(positions, dtype=torch.int64, device=self.device).flatten()
        size = self._data.sizes["pool"]
        if len(rows) and (rows.min() < 0 or rows.max() >= size):
            raise IndexError(f"the pool has the positions 0 to {size - 1}")
        if self.limited:
            return self._counter()(rows + self._offset("pool"))
        return self.teacher_logits(self.split("pool").batch(rows))

    # --- checkpoints ----------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """As of :class:`kdbench.task.Task`, with the images whose answers were paid for."""
        return super().state_dict() | {"known": None if self._counting is None else self._counting.known}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        if state["known"] is not None:
            self._counter().known.copy_(state["known"])
        super().load_state_dict(state)  # the budget last: making the counter may spend

    # --- evaluation -----------------------------------------------------------------------------------------------

    def predict(self, model: nn.Module, x: Tensor) -> Tensor:
        """Logits (N, C) float32 of a network in eval mode, without gradients.

        Inside ``train`` images that go through the shared teacher are metered as ever; afterwards they cost nothing.
        """
        return self._logits(model, x) if self.phase == "evaluate" else teachers.logits_of(model, x)

    def validate(self, model: nn.Module) -> dict[str, float]:
        """top1, nll and ece on the validation data; agreement with the teacher where the task has one.

        Of several clients: means over them.
        """
        if isinstance(model, Clients):
            each = [self.validate(member) for member in model.members]
            return {name: float(np.mean([values[name] for values in each])) for name in each[0]}
        split = self.split("val")
        logits = self._logits(model, split.x)
        probs = logits.softmax(1)
        values = {
            "top1": metrics.accuracy(logits, split.y),
            "nll": metrics.nll(logits, split.y),
            "ece": metrics.ece(probs, split.y),
        }
        if self.spec.teacher is not None:
            values["agreement"] = metrics.agreement(logits, self._outputs("val"))
        return values

    def score_test(self, model: nn.Module) -> Scores:
        """Of several clients: means over them."""
        if not isinstance(model, Clients):
            return self._score_one(model)
        scores = [self._score_one(member) for member in model.members]
        return Scores(
            {name: float(np.mean([each.metrics[name] for each in scores])) for name in scores[0].metrics},
            {name: np.mean([each.examples[name] for each in scores], 0) for name in scores[0].examples},
        )

    def _score_one(self, model: nn.Module) -> Scores:
        test = self.split("test")
        logits = self._test_logits(model, test)
        probs = logits.softmax(1)
        values = {
            "top1": metrics.accuracy(logits, test.y),
            "macro_top1": metrics.macro_accuracy(logits, test.y),
            "nll": metrics.nll(logits, test.y),
            "ece": metrics.ece(probs, test.y),
            "brier": metrics.brier(probs, test.y),
        }
        if self.spec.teacher is not None:
            teacher = self._outputs("test")
            values["agreement"] = metrics.agreement(logits, teacher)
            values["kl_teacher"] = metrics.kl_teacher(logits, teacher)
        values |= self._shifted(model) | self._by_part(logits, test)
        correct = (logits.argmax(1) == test.y).float()
        losses = F.cross_entropy(logits, test.y, reduction="none")
        return Scores(
            {metric.name: values[metric.name] for metric in self.spec.all_metrics()},
            {"top1": correct.cpu().numpy(), "nll": losses.cpu().numpy()},
        )

    def support_of(self, split: Split, count: int) -> Tensor:
        """At most ``count`` images of a test domain, without labels, for networks that adapt to it.

        They are the same for every method. Raises ``TestDataError`` inside ``train``.
        """
        self.require_evaluation()
        rows = torch.randperm(len(split), generator=self.generator("eval"))[:count]
        return split.x[rows.to(split.x.device)]

    def _test_logits(self, model: nn.Module, split: Split) -> Tensor:
        """(N, C) logits of test images; networks that adapt do so for each domain on its own, from the same start."""
        if not isinstance(model, Adaptive):
            return self._logits(model, split.x)
        group = split.meta.get("group", torch.zeros_like(split.y))
        logits = torch.empty(len(split), self.num_classes, device=split.x.device)
        for domain in group.unique():
            part = split.take(group == domain)
            adapted = model.adapted(self.support_of(part, model.support))
            logits[group == domain] = self._logits(adapted, part.x)
        return logits

    def _shifted(self, model: nn.Module) -> dict[str, float]:
        """Mean accuracy over the shifted domains."""
        domains = [name for name in sorted(self._data.sizes) if name.startswith("ood_")]
        if not domains:
            return {}
        splits = [self.split(name) for name in domains]
        top1 = [metrics.accuracy(self._test_logits(model, split), split.y) for split in splits]
        return {"ood_top1": sum(top1) / len(top1)}

    def _by_part(self, logits: Tensor, test: Split) -> dict[str, float]:
        """Accuracy on the parts of the test data that a derived data set is about."""
        derive = self.spec.data.derive
        if isinstance(derive, LongTail):
            each = metrics.class_accuracies(logits, test.y)
            groups = data.class_groups(self._data)
            return {
                f"{part}_top1": each[torch.from_numpy(own).to(each.device)].nanmean().item()
                for part, own in groups.items()
            }
        if isinstance(derive, FewClass):
            omitted = torch.isin(test.y, torch.tensor(derive.drop, device=test.y.device))
            return {"omitted_top1": metrics.accuracy(logits[omitted], test.y[omitted])}
        if isinstance(derive, MultiDomain | PseudoDomain):
            group = test.meta["group"]
            each = [metrics.accuracy(logits[group == g], test.y[group == g]) for g in group.unique()]
            return {"worst_domain_top1": min(each)}
        return {}

    # --- artifacts ------------------------------------------------------------------------------------------------

    def check(self, model: Any) -> None:
        self.require(model, nn.Module)
        probe = self.split("val").x[:2]
        try:
            logits = self._logits(model, probe)
        except (RuntimeError, TypeError, ValueError, AttributeError, IndexError) as error:
            raise ArtifactError(
                f"the {type(model).__name__} that train returned does not take images: {error}"
            ) from error
        if logits.shape != (len(probe), self.num_classes):
            raise ArtifactError(
                f"the {type(model).__name__} that train returned gives {tuple(logits.shape)} for {len(probe)} images; "
                f"expected logits {(len(probe), self.num_classes)}"
            )

    def save(self, model: nn.Module, folder: Path) -> None:
        """A transformers folder for its networks; else ``model.safetensors`` and ``config.json``."""
        saving.save(model, folder, self.num_classes, self.spec.data.size)

    def load(self, folder: Path) -> nn.Module:
        """The saved network, in eval mode. Raises ``ArtifactError`` for classes that only their method can build."""
        return saving.load(folder, self.num_classes).to(self.device).eval()


__all__ = ["Batch", "Split", "TestDataError", "VisionTask"]
