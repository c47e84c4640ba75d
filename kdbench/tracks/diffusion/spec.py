"""What a task of the track ``diffusion`` is: data, process, teacher, student. Free of torch."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from kdbench.errors import Problem
from kdbench.spec import Metric, SpecModel, TaskSpec, digest
from kdbench.tracks.diffusion.data.specs import DiffusionData, JudgedData

TEACHER_FORMAT = 2
"""Bumped by hand when the training of teachers changes."""


# --- networks ---------------------------------------------------------------------------------------------------------


class Mlp(SpecModel):
    """A residual perceptron; the cheapest."""

    kind: Literal["mlp"] = "mlp"
    width: int = Field(256, ge=4)
    depth: int = Field(4, ge=1)
    """Residual blocks."""


class UNet(SpecModel):
    """A U-Net with group normalisation."""

    kind: Literal["unet"] = "unet"
    channels: int = Field(16, ge=4)
    """At the highest resolution."""
    multipliers: tuple[int, ...] = Field((1, 2), min_length=1)
    """Of the channels, one a resolution."""
    blocks: int = Field(1, ge=1)
    """Residual blocks at each resolution."""
    attention: bool = False
    """Self-attention at the lowest resolution."""
    fold: bool | Literal[4] = False
    """Squares of 2 x 2 pixels (4: of 4 x 4) become channels first, so that the network works at half the resolution."""
    tokens: Literal["sum", "cross"] = "sum"
    """Embeddings of the tokens are added to that of the time, or attended to."""


class Dit(SpecModel):
    """A transformer over patches with adaptive layer normalisation."""

    kind: Literal["dit"] = "dit"
    patch: int = Field(4, ge=1)
    width: int = Field(64, ge=8)
    depth: int = Field(4, ge=1)
    heads: int = Field(4, ge=1)
    tokens: Literal["sum", "cross"] = "sum"
    """As of ``UNet``."""

    @model_validator(mode="after")
    def _heads(self) -> Dit:
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is not a multiple of heads {self.heads}")
        return self


Net = Annotated[Mlp | UNet | Dit, Field(discriminator="kind")]


# --- processes --------------------------------------------------------------------------------------------------------


class EdmSpec(SpecModel):
    """Variance exploding; times are standard deviations."""

    name: Literal["edm"] = "edm"
    sigma_min: float = Field(0.02, gt=0)
    sigma_max: float = Field(20.0, gt=0)
    mean: float = -1.2
    """Of ln sigma in the training of teachers."""
    std: float = Field(1.2, gt=0)


class FlowSpec(SpecModel):
    """The straight line from data to noise."""

    name: Literal["flow"] = "flow"
    shift: float = Field(1.0, gt=0)


class VpSpec(SpecModel):
    """Variance preserving."""

    name: Literal["vp"] = "vp"
    beta_min: float = Field(0.1, gt=0)
    beta_max: float = Field(20.0, gt=0)


ProcessSpec = Annotated[EdmSpec | FlowSpec | VpSpec, Field(discriminator="name")]


# --- teachers and students --------------------------------------------------------------------------------------------


class Training(SpecModel):
    """How a denoiser is trained before the tasks begin: Adam, cosine to 0, averaged weights."""

    steps: int = Field(2500, ge=1)
    batch_size: int = Field(128, ge=1)
    lr: float = Field(1e-3, gt=0)
    ema: float = Field(0.999, gt=0, lt=1)
    dropout: float = Field(0.1, ge=0, lt=1)
    """Share of rows that are trained without their condition, so that guidance exists."""


class Exact(SpecModel):
    """A teacher in closed form: the posterior mean of a mixture, without error."""

    kind: Literal["exact"] = "exact"
    network: Net = Mlp(width=128, depth=3)
    """Network that is fitted to it, for methods whose networks start as the teacher."""
    training: Training = Training(steps=3000)


class Trained(SpecModel):
    """A teacher that was trained on the data, with the error that this brings."""

    kind: Literal["trained"] = "trained"
    network: Net = Mlp()
    training: Training = Training()


class Hub(SpecModel):
    """A pretrained pipeline in the format of diffusers."""

    kind: Literal["hub"] = "hub"
    path: str
    """A folder (starts with /, ./, ../ or ~) or a name on the hub."""
    revision: str | None = None
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"


class CodesTeacher(SpecModel):
    """A tokenizer of pictures and a causal transformer over its codes."""

    kind: Literal["codes"] = "codes"
    codebook: int = Field(32, ge=2)
    code_width: int = Field(4, ge=1)
    width: int = Field(64, ge=8)
    depth: int = Field(3, ge=1)
    heads: int = Field(4, ge=1)
    tokenizer_training: Training = Training(steps=1000)
    training: Training = Training(steps=2000)


Teacher = Annotated[Exact | Trained | Hub | CodesTeacher, Field(discriminator="kind")]


class Student(SpecModel):
    """The network that is trained and evaluated."""

    network: Net | None = None
    """null: as the teacher's."""
    init: Literal["teacher", "scratch"] = "teacher"
    """First weights: those of the teacher (of the network fitted to it, where it is exact), or fresh ones."""
    start: float | None = Field(None, gt=0)
    """Time at which a generator of one step is called (sigma_init); null: that of the prior."""


class Gate(SpecModel):
    """What the task must be like before a board says anything about distillation; on validation data."""

    at: tuple[int, ...] = (1, 2, 4)
    """Few steps that the teacher is also sampled with."""
    steps: float | None = 1.5
    """Its headline with each of these is at least so many times that with its official steps."""
    naive: float | None = 2.0
    """As ``steps``, of the teacher's weights called once."""
    small: float | None = 1.1
    """As ``steps``, of a student from scratch that is trained as an ordinary denoiser; asked where there is one."""


class Evaluation(SpecModel):
    """How samplers are scored."""

    samples: int = Field(2000, ge=4)
    val_samples: int = Field(500, ge=4)
    teacher_steps: int = Field(18, ge=1)
    """Steps of the official teacher (Heun)."""
    few: int = Field(4, ge=1)
    """Steps of methods of few steps, unless they say otherwise."""
    grid: int = Field(10, ge=1)
    """Samples a row and a column of the picture of samples has."""


class DiffusionSpec(TaskSpec):
    """A fully resolved task of the track ``diffusion``."""

    headline: Metric = Metric(name="fd", direction="min", bounds=(0.0, None))
    floor: str = "naive_one_step"
    ceiling: str = "teacher"
    data: DiffusionData
    process: ProcessSpec = EdmSpec()
    teacher: Teacher = Trained()
    student: Student = Student()
    guidance: float = Field(1.0, ge=0)
    """Guidance scale w of the official teacher; 1: none."""
    gate: Gate | None = None
    evaluation: Evaluation = Evaluation()

    @model_validator(mode="after")
    def _consistent(self) -> DiffusionSpec:
        if isinstance(self.teacher, Exact) and self.data.kind != "points":
            raise ValueError(f"data {self.data.kind!r} have no exact teacher; points have one")
        if isinstance(self.teacher, CodesTeacher) != (self.data.kind == "codes"):
            raise ValueError("a teacher of kind 'codes' belongs to data of kind 'codes', and they need it")
        own = self.student.network
        if self.student.init == "teacher" and own is not None and own != self.start_network():
            raise ValueError(
                "a student that starts with the teacher's weights has the teacher's network; init: scratch"
            )
        return self

    def start_network(self) -> Mlp | UNet | Dit | None:
        """The network of the teacher, or the one that is fitted to an exact one; None for pretrained teachers."""
        return self.teacher.network if isinstance(self.teacher, Exact | Trained) else None

    def student_network(self) -> Mlp | UNet | Dit | None:
        """The student's network; None: that of a pretrained teacher."""
        return self.student.network if self.student.network is not None else self.start_network()

    # --- what is made before jobs -----------------------------------------------------------------------------------

    def teacher_identity(self) -> dict[str, Any]:
        """Everything that decides a teacher's weights; of an exact one, those of the network fitted to it."""
        return {
            "track": "diffusion",
            "format": TEACHER_FORMAT,
            "data": self.data.decides_teacher(),
            "process": self.process.model_dump(mode="json"),
            "teacher": self.teacher.model_dump(mode="json"),
            "seed": self.teacher_seed,
        }

    def gap_key(self) -> dict[str, Any]:
        """Everything that decides the capacity gap."""
        return {
            "teacher": self.teacher_identity(),
            "data": self.data.model_dump(mode="json"),
            "student": self.student.model_dump(mode="json"),
            "recipe": self.recipe.model_dump(mode="json"),
            "limits": self.limits,
            "guidance": self.guidance,
            "evaluation": self.evaluation.model_dump(mode="json"),
            "at": None if self.gate is None else self.gate.at,
        }

    def teacher_key(self) -> str | None:
        return digest(self.teacher_identity())

    def teacher_needs(self) -> list[tuple[str, Any, str]]:
        if isinstance(self.teacher, Hub):
            return []
        needs: list[tuple[str, Any, str]] = [("teacher", self.teacher_identity(), f"teacher of {self.name}")]
        if isinstance(self.data, JudgedData):
            needs += [("judge", key, f"judge of {key['role']} of {self.name}") for key in self.data.judge_keys()]
        if self.gate is not None:
            needs.append(("gap", self.gap_key(), f"capacity gap of {self.name}"))
        return needs

    def problems(self) -> list[Problem]:
        place = f"task {self.name}@{self.scale}"
        found = [
            Problem(place, f"package {module!r} is not installed", f"pip install {module}")
            for module in (*self.requires, *(("diffusers",) if isinstance(self.teacher, Hub) else ()))
            if importlib.util.find_spec(module) is None
        ]
        paths = {"teacher.path": self.teacher.path} if isinstance(self.teacher, Hub) else {}
        if getattr(self.data, "path", None):
            paths["data.path"] = self.data.path  # type: ignore[union-attr]
        for field, path in paths.items():
            if path.startswith(("/", "./", "../", "~")) and not Path(path).expanduser().exists():
                hint = "a path starts with /, ./, ../ or ~; everything else is a name on the hub"
                found.append(Problem(f"{place}: {field}", f"there is no folder {path}", hint))
        return found
