"""Jobs, outcomes and runs: what flows from the plan through the workers to the stores."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator

from kdbench.spec import PROTOCOL, digest

OUTCOME_SCHEMA = 2
"""Version of :class:`Outcome` as written to the spool."""

Status = Literal["ok", "failed", "diverged", "over_budget", "timeout", "oom", "crashed", "interrupted"]


def utcnow() -> datetime:
    """Now, as naive UTC with microseconds: the form of every stored timestamp."""
    return datetime.now(UTC).replace(tzinfo=None)


class Resources(BaseModel):
    """What one job occupies while it runs; never part of its identity."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    cpus: float = Field(1, gt=0, le=1024)
    """CPU cores that the scheduler sets aside; a CPU job computes with one thread whatever this says."""
    gpus: float = Field(0, ge=0, le=64)
    """GPUs: a fraction below 1 shares one device, whole numbers reserve devices."""
    memory: int | None = Field(None, gt=0)
    """Bytes of main memory after which the job ends as ``oom``; null: an equal share of the machine's."""
    gpu_memory: int | None = Field(None, gt=0)
    """Bytes that must be free on each of its devices; alone, without ``gpus``, it asks for a part of one device."""

    @field_validator("gpus")
    @classmethod
    def _whole(cls, gpus: float) -> float:
        if gpus > 1 and gpus != int(gpus):
            raise ValueError(f"more than one GPU is a whole number of them, but this is {gpus:g}")
        return gpus

    @property
    def on_gpu(self) -> bool:
        """Whether the job gets any device."""
        return bool(self.gpus or self.gpu_memory)


class Job(BaseModel):
    """One cell of a suite: a method with parameters on a task with a seed and a budget."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    method: str
    """``track/slug``."""
    method_digest: str
    """SHA-256 of the method's source file, without what it says about itself (its card and docstring)."""
    params: dict[str, Any]
    """Every parameter of the method, defaults included, in canonical form."""
    task: str
    """``track/name``."""
    spec: dict[str, Any]
    """The fully resolved task (``TaskSpec.identity()``), budget and scale included."""
    seed: int = Field(ge=0)
    track_version: int
    protocol: int = PROTOCOL

    # What follows does not change results and stays out of the id.
    suite: str = ""
    """Name of the suite that asked for it first."""
    label: str = ""
    """Method with the parameters that differ from its defaults, for people."""
    method_file: Path
    """Where the method's module was found."""
    module: str | None = None
    """Importable module name, or None for a method that is loaded from its file."""
    resources: Resources = Resources()
    timeout: float = 3600
    """Seconds of wall-clock time after which the job is ended."""
    heartbeat: float | None = 600
    """Seconds without any sign of life (a step, output, processor time) after which the job is ended; null: never."""
    checkpoint_every: float | None = 600
    """Seconds between two checkpoints from which an interrupted job goes on; null: it starts anew."""
    keep: tuple[str, ...] = ()
    """Artifacts to keep: ``model``."""

    @property
    def identity(self) -> dict[str, Any]:
        """What the id is taken of (decision 1 of the design)."""
        fields = ("method", "method_digest", "params", "task", "spec", "seed", "track_version", "protocol")
        return {name: getattr(self, name) for name in fields}

    @cached_property
    def id(self) -> str:
        """16 hexadecimal digits; equal ids mean equal work."""
        return digest(self.identity)

    @property
    def track(self) -> str:
        return self.method.split("/", 1)[0]

    @property
    def scale(self) -> str:
        return str(self.spec["scale"])

    @cached_property
    def spec_digest(self) -> str:
        """What leaderboards group by: jobs of one board solved exactly the same task."""
        return digest(self.spec)

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        copied = super().model_copy(update=update, deep=deep)
        for name in ("id", "spec_digest"):  # pydantic copies cached values along
            copied.__dict__.pop(name, None)
        return copied


class Failure(BaseModel):
    """Why a job has no result."""

    type: str
    """Class of the exception, signal name, or reason."""
    message: str
    traceback: str = ""
    """Last frames, in the method's own code where possible."""


class Outcome(BaseModel):
    """What a job left; ``outcome.json`` in its folder of the spool is the truth that every store is filled from."""

    model_config = ConfigDict(extra="forbid", ser_json_inf_nan="strings")

    schema_version: int = OUTCOME_SCHEMA
    id: str
    job: Job
    status: Status
    headline: float | None = None
    """Value of the task's headline metric; None unless ``status`` is ``ok``."""
    metrics: dict[str, float] = {}
    """Official metrics of the task, computed by the runner."""
    extra: dict[str, float] = {}
    """Metrics that only this method's ``evaluate`` measured."""
    cost: dict[str, float] = {}
    """Meters: steps, samples, teacher_queries, generated_tokens, flops, train_seconds, eval_seconds, parameters ..."""
    error: Failure | None = None
    artifacts: list[str] = []
    """Files in the job's folder, relative to it."""
    started_at: datetime
    """Naive UTC."""
    finished_at: datetime
    """Naive UTC."""
    attempts: int = 1
    provenance: dict[str, Any] = {}
    """git commit and dirty flag, package versions, hardware, device, digests of the kdbench modules used."""

    @property
    def seconds(self) -> float:
        return (self.finished_at - self.started_at).total_seconds()


class Run(BaseModel):
    """One invocation of ``kdbench run``, as event hooks see it."""

    id: str
    suites: dict[str, list[str]]
    """Ids of the jobs that each suite of the run plans, in the order of its plan; suites may share jobs."""
    results: Path
    """Folder of the spool and the stores."""
    jobs: list[Job]
    """Every job of the run's suites, each once, in the order of the plans."""
    todo: list[str]
    """Ids of the jobs that this run executes; the others were done before."""
    workers: int = 1
    tracking: str | None = None
    """MLflow tracking URI, or None where tracking is off."""
    started_at: datetime = Field(default_factory=utcnow)
    signal: int | None = None
    """Number of the signal that interrupted it, once it has ended."""

    @property
    def suite(self) -> str:
        """The suites of the run, for people."""
        return " + ".join(self.suites)


class Place(BaseModel):
    """Where a job runs."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    pid: int
    """Of the job's process, on its host."""
    host: str = ""
    """Name or address of the machine; empty for the coordinator's own."""
    devices: tuple[str, ...] = ()
    """GPUs, as ``CUDA_VISIBLE_DEVICES`` calls them."""
    attempt: int = 1
