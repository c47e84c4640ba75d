"""What a task of the track ``dataset_distillation`` is: data, student, committee, evaluation. Free of torch."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from kdbench.errors import Problem
from kdbench.spec import Metric, SpecModel, TaskSpec, digest
from kdbench.tracks.dataset_distillation.data.specs import DDData, ImagesData
from kdbench.tracks.dataset_distillation.networks.names import check_arch

NETWORK_FORMAT = 1
"""Bumped by hand when the training of committees and experts changes."""
SCORE_FORMAT = 1
"""Bumped by hand when the training on distilled data changes."""


class Training(SpecModel):
    """How a network learns from the real data before the tasks begin; cosine to 0."""

    epochs: int = Field(15, ge=1)
    batch_size: int = Field(64, ge=2)
    optimizer: Literal["sgd", "adamw"] = "sgd"
    lr: float = Field(0.05, gt=0)
    momentum: float = Field(0.9, ge=0, lt=1)
    """Of SGD (Nesterov)."""
    weight_decay: float = Field(5e-4, ge=0)


class Buffer(SpecModel):
    """Experts: networks of the student's architecture whose weights are kept after each epoch."""

    count: int = Field(8, ge=1)
    epochs: int = Field(12, ge=2)
    batch_size: int = Field(64, ge=2)


class Evaluation(SpecModel):
    """How distilled data are scored: fresh networks learn from them, AdamW, cosine."""

    updates: int = Field(300, ge=1)
    """Optimizer steps, whatever the size of the set; the network of the last one counts."""
    batch_size: int = Field(50, ge=2)
    lr: float = Field(3e-3, gt=0)
    weight_decay: float = Field(0.01, ge=0)
    runs: int = Field(2, ge=1)
    """Trainings of the student's architecture, each from other weights."""
    unseen: tuple[str, ...] = ()
    """Further architectures; one training each."""
    augment: bool = True
    """Whether the headline is with shifts and small rotations of the images."""
    whole_updates: int = Field(1500, ge=1)
    """Optimizer steps on the whole real training set."""
    w: float = Field(0.5, ge=0, le=1)
    """Weight of the gain over a random subset in the label-robust score; 1 - w is that of the loss to the whole set."""
    g: float = Field(0.5, ge=0, le=1)
    """Weight of the accuracy with augmentation in the augmentation-robust score."""

    @field_validator("unseen")
    @classmethod
    def _known(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(check_arch(arch) for arch in value)


class Gate(SpecModel):
    """What the task must be like before a board says anything about distillation."""

    whole: float = Field(0.8, ge=0, le=1)
    """Accuracy of training on the whole real set, at least."""
    gap: float = Field(0.1, ge=0, le=1)
    """Of that over a random subset of the budget, at least."""


class DDSpec(TaskSpec):
    """A fully resolved task of the track ``dataset_distillation``."""

    headline: Metric = Metric(name="accuracy", direction="max", bounds=(0.0, 1.0))
    floor: str = "random"
    ceiling: str = "full"
    data: DDData
    student: str
    """Architecture that the headline is measured with, and that methods may train."""
    committee: tuple[str, ...] = ()
    """Architectures of the networks that were trained on the real data, for soft labels and for statistics; the first
    is the teacher."""
    training: Training = Training()
    """Of the committee."""
    buffer: Buffer = Buffer()
    evaluation: Evaluation = Evaluation()
    gate: Gate | None = None

    @field_validator("student")
    @classmethod
    def _student(cls, value: str) -> str:
        return check_arch(value)

    @field_validator("committee")
    @classmethod
    def _committee(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(check_arch(arch) for arch in value)

    @model_validator(mode="after")
    def _consistent(self) -> DDSpec:
        if isinstance(self.data, ImagesData) and not self.committee:
            raise ValueError("tasks of images name a committee of at least one network")
        return self

    # --- what is made before jobs -----------------------------------------------------------------------------------

    def network_key(self, arch: str, number: int) -> dict[str, Any]:
        """Everything that decides the weights of a committee's member; ``number`` tells equal architectures apart."""
        return {
            "track": "dataset_distillation",
            "format": NETWORK_FORMAT,
            "data": self.data.recipe(),
            "flip": getattr(self.data, "flip", False),
            "arch": arch,
            "number": number,
            "training": self.training.model_dump(mode="json"),
            "seed": self.teacher_seed,
        }

    def committee_keys(self) -> list[dict[str, Any]]:
        """One key a member."""
        return [self.network_key(arch, self.committee[:i].count(arch)) for i, arch in enumerate(self.committee)]

    def scores_key(self, what: str, **more: Any) -> dict[str, Any]:
        """Everything that decides the accuracy of what the task itself offers: the whole set, random subsets."""
        return {
            "track": "dataset_distillation",
            "format": [NETWORK_FORMAT, SCORE_FORMAT],
            "what": what,
            "task": self.name,
            "data": self.data.model_dump(mode="json"),
            "student": self.student,
            "evaluation": self.evaluation.model_dump(mode="json"),
            **more,
        }

    def teacher_key(self) -> str | None:
        return digest(self.committee_keys()) if self.committee else None

    def teacher_needs(self) -> list[tuple[str, Any, str]]:
        needs: list[tuple[str, Any, str]] = [
            ("teacher", key, f"{key['arch']} on the data of {self.name}") for key in self.committee_keys()
        ]
        return [*needs, ("reference", self.scores_key("reference"), f"whole and random data of {self.name}")]

    def problems(self) -> list[Problem]:
        place = f"task {self.name}@{self.scale}"
        modules = (*self.requires, *(("datasets",) if getattr(self.data, "source", "") == "hf" else ()))
        found = [
            Problem(place, f"package {module!r} is not installed", f"pip install {module}")
            for module in modules
            if importlib.util.find_spec(module) is None
        ]
        path = getattr(self.data, "path", "")
        if path.startswith(("/", "./", "../", "~")) and not Path(path).expanduser().exists():
            hint = "a path starts with /, ./, ../ or ~; everything else is a name on the hub"
            found.append(Problem(f"{place}: data.path", f"there is no folder {path}", hint))
        return found
