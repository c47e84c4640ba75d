"""``DiffusionTask``: what a method of the track ``diffusion`` receives."""

from __future__ import annotations

import json
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

from torch import nn

from kdbench.errors import JobError
from kdbench.task import Scores, Task
from kdbench.track import Track
from kdbench.tracks.diffusion import TRACK, gate, teachers
from kdbench.tracks.diffusion.batches import Draws, Reals, Turns, drawer
from kdbench.tracks.diffusion.kinds import kind_of
from kdbench.tracks.diffusion.kinds.base import Kind, Split
from kdbench.tracks.diffusion.networks.base import Denoiser
from kdbench.tracks.diffusion.processes import Process
from kdbench.tracks.diffusion.samplers.base import Sampled, Sampler
from kdbench.tracks.diffusion.samplers.solvers import Solver
from kdbench.tracks.diffusion.spec import CodesTeacher, DiffusionSpec, Exact, Hub
from kdbench.training.loaders import Order


class DiffusionTask(Task):
    """One task of the track: a teacher of many steps, a student, samples of the data.

    ``train`` returns a :class:`~kdbench.tracks.diffusion.samplers.base.Sampler`. A *step* is one update of any network
    that is trained for it: generator or critic.
    """

    spec: DiffusionSpec
    home: ClassVar[Track] = TRACK

    # --- data -----------------------------------------------------------------------------------------------------

    @cached_property
    def kind(self) -> Kind:
        """What the track does with data of this kind."""
        return kind_of(self.spec.data.kind)(self.spec, self.cache)

    @property
    def shape(self) -> tuple[int, ...]:
        """Of a sample."""
        return self.kind.shape

    @cached_property
    def process(self) -> Process:
        """The forward process of teacher and student."""
        return teachers.process_of(self.spec, self.kind)

    @property
    def guidance(self) -> float:
        """Scale of the official teacher's guidance; 1: none."""
        return self.spec.guidance

    @property
    def sigma_init(self) -> float:
        """Time at which a generator of one step is called."""
        start = self.spec.student.start
        return self.process.t_max if start is None else start

    def split(self, name: str) -> Split:
        """A split, on the task's device. Test data raise ``TestDataError`` inside ``train``."""
        if name not in ("train", "val"):
            self.require_evaluation()
        split = self.kind.split(name)
        return Split(split.x.to(self.device), split.cond.to(self.device))

    def train_loader(self, batch_size: int | None = None, purpose: str = "data") -> Reals:
        """Batches of real samples in a new random order each epoch; metered as ``real_images``."""
        size = self.spec.recipe.batch_size if batch_size is None else batch_size
        split = self.split("train")
        order = Order(len(split), min(size, len(split)), self.generator(purpose), self.device)
        return Reals(split.x, split.cond, order, lambda rows: self.budget.spend("real_images", rows))

    def draws(self, batch_size: int | None = None, purpose: str = "draws") -> Draws:
        """Batches of prior noise and prompts without end: what methods without data learn from."""
        size = self.spec.recipe.batch_size if batch_size is None else batch_size
        return Draws(drawer(self.shape, self.kind.conditions, self.generator(purpose), self.device), size)

    def turns(self, ratio: int, *, real: bool = False, batch_size: int | None = None, purpose: str = "draws") -> Turns:
        """Batches for ``ratio`` updates of a critic and one of a generator; ``real``: with real samples for each."""
        size = self.spec.recipe.batch_size if batch_size is None else batch_size
        make = drawer(self.shape, self.kind.conditions, self.generator(purpose), self.device)
        return Turns(make, size, ratio, self.train_loader(size) if real else None)

    # --- networks -------------------------------------------------------------------------------------------------

    def load_teacher(self) -> Any:
        teacher = self.spec.teacher
        if isinstance(teacher, Exact):
            return self.kind.exact()
        if isinstance(teacher, Hub):
            return self.kind.pretrained.denoiser  # type: ignore[attr-defined]
        if isinstance(teacher, CodesTeacher):
            return self.kind.teacher(self)  # type: ignore[attr-defined]
        return teachers.stored(self)

    def teacher(self, *, trainable: bool = False) -> Any:
        """The teacher: frozen, in evaluation mode, shared and metered; or a private trainable copy.

        Raises ``JobError`` for a trainable copy of an exact one: that is :meth:`score_network`.
        """
        if trainable and isinstance(self.spec.teacher, Exact):
            raise JobError("an exact teacher has no weights: take task.score_network(), which is fitted to it")
        if trainable and isinstance(self.spec.teacher, Hub):
            super().teacher()  # loaded once, and copied
        return super().teacher(trainable=trainable)

    def score_network(self) -> Denoiser:
        """A trainable denoiser that starts as the teacher: its copy, or the network that was fitted to an exact one."""
        if isinstance(self.spec.teacher, Exact):
            return self.place(teachers.stored(self)).requires_grad_(True).train()  # type: ignore[no-any-return]
        return self.teacher(trainable=True)  # type: ignore[no-any-return]

    def build_teacher(self) -> nn.Module:
        net = self.spec.start_network()
        if net is None:
            raise JobError(f"the architecture of {self.spec.name}'s teacher is not built here")
        return teachers.new_network(self.spec, self.kind, net)

    def build_student(self) -> Denoiser:
        """The student: with the teacher's weights, or fresh from the global generators, as the task says."""
        net = self.spec.student_network()
        if self.spec.student.init == "teacher":
            return self.score_network()
        if net is None:
            raise JobError(f"{self.spec.name} names no network for a student from scratch")
        return teachers.new_network(self.spec, self.kind, net)

    def fresh_student(self) -> Denoiser:
        """A network of the student's architecture that has learned nothing; the same for all methods of a seed."""
        net = self.spec.student_network()
        if net is None:
            raise JobError(f"the architecture of {self.spec.name}'s student is not built here")
        with self.seeded("init"):
            model = teachers.new_network(self.spec, self.kind, net)
        return self.place(model)  # type: ignore[no-any-return]

    def prepare(self) -> None:
        """Make the data, the teachers, what evaluation needs, and the capacity gap."""
        self.kind.split("train")
        self.load_teacher()
        if isinstance(self.spec.teacher, Exact):
            teachers.stored(self)
        self.kind.prepare(self)
        if self.spec.gate is not None:
            gate.measured(self)

    def official_teacher(self, steps: int | None = None, guidance: float | None = None) -> Solver:
        """The teacher with the task's number of Heun steps and guidance."""
        count = self.spec.evaluation.teacher_steps if steps is None else steps
        w = self.guidance if guidance is None else guidance
        method = "heun" if count > 4 else "euler"  # of two points of a Karras grid the second order divides by t_min
        return Solver(self.teacher(), self.process.grid(count).tolist(), method, guidance=w)

    # --- evaluation -----------------------------------------------------------------------------------------------

    def samples(self, sampler: Sampler, count: int | None = None, split: str = "val") -> Sampled:
        """Samples for the fixed noise and the conditions of a split; those of ``test`` in evaluation alone."""
        if split != "val":
            self.require_evaluation()
        evaluation = self.spec.evaluation
        usual = evaluation.samples if split == "test" else evaluation.val_samples
        return self.kind.samples(sampler, usual if count is None else count, split, self.device)

    def validate(self, model: Sampler) -> dict[str, float]:
        spent = dict(self.budget.spent)
        try:
            return self.kind.validate(self, model)
        finally:
            self.budget.restore(spent)  # looking at one's samples is no cost of training

    def score_test(self, model: Sampler) -> Scores:
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
        """Why the task is not informative, where it is not."""
        return [] if self.spec.gate is None else gate.problems(gate.measured(self), self.spec)

    # --- artifacts ------------------------------------------------------------------------------------------------

    def check(self, model: Any) -> None:
        self.require(model, Sampler)

    def save(self, model: Sampler, folder: Path) -> None:
        """What the sampler writes, and its kind."""
        self.check(model)
        folder.mkdir(parents=True, exist_ok=True)
        model.save(folder)
        (folder / "kdbench.json").write_text(json.dumps({"task": self.spec.name, "sampler": model.kind}) + "\n")

    def load(self, folder: Path) -> Sampler:
        """A sampler that :meth:`save` wrote."""
        kind = json.loads((folder / "kdbench.json").read_text())["sampler"]
        return Sampler.of_kind(kind).load(folder, self)
