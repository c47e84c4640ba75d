"""What a task is: the part of a track that suites may override and that jobs are identified by.

No heavy imports: suites are checked and planned from these models alone.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from kdbench.errors import Problem
from kdbench.track import Track as Track  # lives apart, so that listing tracks does not import pydantic

Scale = Literal["smoke", "quick", "cpu", "nightly", "paper"]
SCALES: tuple[Scale, ...] = ("smoke", "quick", "cpu", "nightly", "paper")

PROTOCOL = 1
"""Bumped by hand when a change of shared code changes results of every track."""


def canonical_json(value: Any) -> str:
    """JSON with sorted keys and no spaces: the form that digests are taken of. NaN is refused."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False, ensure_ascii=False)


def digest(value: Any) -> str:
    """First 16 hexadecimal digits of the SHA-256 of ``canonical_json(value)``."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()[:16]


class SpecModel(BaseModel):
    """Base of every part of a task's specification: unknown keys are errors, docstrings are descriptions."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        validate_default=True,
        allow_inf_nan=False,
        protected_namespaces=(),
    )


class Metric(SpecModel):
    """A number that outcomes carry."""

    name: str
    direction: Literal["max", "min"] = "max"
    """Whether more or less is better."""
    bounds: tuple[float | None, float | None] = (None, None)
    """Smallest and largest possible value; null where there is none."""
    unit: str = ""
    """For people: ``%``, ``bits/byte``, ``tokens``."""
    clock: bool = False
    """Measured with a clock: another run of the same job gives another value."""


class Recipe(SpecModel):
    """How ``task.fit`` trains by default; a method may override any field in its call."""

    optimizer: Literal["sgd", "adam", "adamw"] = "adamw"
    lr: float = Field(1e-3, gt=0)
    """Peak learning rate."""
    momentum: float = Field(0.9, ge=0, lt=1)
    """Of SGD (Nesterov)."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Of Adam and AdamW."""
    weight_decay: float = Field(0.0, ge=0)
    schedule: Literal["constant", "cosine", "linear", "onecycle", "multistep"] = "cosine"
    warmup: float = Field(0.0, ge=0, lt=1)
    """Fraction of the steps in which the rate rises linearly from 0 (``onecycle``: to the peak)."""
    final_lr: float = Field(0.0, ge=0, le=1)
    """Fraction of ``lr`` at the last step."""
    milestones: tuple[float, ...] = (0.625, 0.75, 0.875)
    """``multistep``: fractions of the steps at which the rate is multiplied by ``gamma``."""
    gamma: float = Field(0.1, gt=0, le=1)
    clip: float | None = Field(None, gt=0)
    """Largest global gradient norm; null: no clipping."""
    batch_size: int = Field(64, ge=1)
    accumulate: int = Field(1, ge=1)
    """Micro-batches per optimizer step."""
    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    """Of autocast in the forward pass; losses and weights stay float32."""


class TaskSpec(SpecModel):
    """A fully resolved task; tracks extend it with their ``data``, ``teacher`` and ``student``."""

    name: str
    """``track/name``."""
    title: str
    family: str
    """Sub-suite within the track; cards name families or tasks."""
    scale: Scale
    headline: Metric
    metrics: tuple[Metric, ...] = ()
    """Official metrics beside the headline."""
    floor: str = "no_kd"
    """Slug of the method without distillation: 0 on the gap-closed scale."""
    ceiling: str = "teacher"
    """Slug of the method that is 1 on the gap-closed scale."""
    limits: dict[str, float] = {}
    """Hard limits of what the evaluated student may spend; the first is the primary unit, usually ``steps``."""
    recipe: Recipe = Recipe()
    teacher_seed: int = 0
    requires: tuple[str, ...] = ()
    """Importable modules beyond kdbench's own dependencies, such as ``mlxtend``."""
    timeout: float = Field(3600, gt=0)
    """Seconds after which a job of this task is ended; never limits training otherwise."""

    @property
    def track(self) -> str:
        return self.name.split("/", 1)[0]

    def identity(self) -> dict[str, Any]:
        """What results depend on: everything but titles, the timeout and what is only said about metrics."""
        return self.model_dump(
            mode="json",
            exclude={"title": True, "timeout": True, "headline": {"clock"}, "metrics": {"__all__": {"clock"}}},
        )

    def teacher_key(self) -> str | None:
        """Digest of all that decides the teacher, or None where the task has no teacher to prepare."""
        raise NotImplementedError(f"{type(self).__name__} must say what decides its teacher")

    def teacher_needs(self) -> list[tuple[str, Any, str]]:
        """Cache entries that jobs of the task need before they start: kind, key and a title for people."""
        key = self.teacher_key()
        return [] if key is None else [("teacher", key, f"teacher of {self.name}")]

    def problems(self) -> list[Problem]:
        """What would stop a job of this task on this machine (missing folders, packages), found without running."""
        return []

    def all_metrics(self) -> tuple[Metric, ...]:
        return (self.headline, *self.metrics)
