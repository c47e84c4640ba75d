"""What a task of the track ``dllm`` is: data, mask predictor, decoding, evaluation. Free of torch."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from kdbench.errors import Problem
from kdbench.spec import Metric, SpecModel, TaskSpec, digest
from kdbench.tracks.dllm.data.specs import DllmData, HubProblemsData
from kdbench.tracks.llm.spec import Hub as CausalHub
from kdbench.tracks.llm.spec import Lora, looks_local

TEACHER_FORMAT = 1
"""Bumped by hand when the training of teachers changes."""


class Net(SpecModel):
    """A transformer that reads prompt and canvas in both directions."""

    layers: int = Field(3, ge=1)
    width: int = Field(96, ge=8)
    heads: int = Field(4, ge=1)
    mlp: int | None = Field(None, ge=8)
    """Hidden width of the feed-forward blocks; null: 4 times the width."""

    @model_validator(mode="after")
    def _heads(self) -> Net:
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is not a multiple of heads {self.heads}")
        return self


class Training(SpecModel):
    """How a mask predictor is trained on the data: the objective of masked diffusion, AdamW, cosine to 0, clip 1."""

    steps: int = Field(3000, ge=1)
    batch_size: int = Field(64, ge=1)
    lr: float = Field(2e-3, gt=0)
    warmup: float = Field(0.05, ge=0, lt=1)
    t_min: float = Field(0.02, gt=0, le=1)
    """Least share of masked tokens: the loss is divided by it."""


class Trained(SpecModel):
    """A mask predictor that was trained on the task's data."""

    kind: Literal["trained"] = "trained"
    network: Net = Net()
    training: Training = Training()


class Hub(CausalHub):
    """A masked-diffusion language model of the Hugging Face hub, or a folder written by ``save_pretrained``."""

    kind: Literal["hub"] = "hub"  # type: ignore[assignment]
    architecture: Literal["masked", "auto"] = "auto"
    """``masked``: read by ``AutoModelForMaskedLM``; ``auto``: by ``AutoModel``, as LLaDA and Dream are."""
    mask_token: int | None = Field(None, ge=0)
    """Id of the mask; null: the one that the tokenizer names."""
    shift: bool = False
    """Position i predicts position i + 1, as in Dream."""


class Student(SpecModel):
    """The network that is trained: it starts with the teacher's weights."""

    lora: Lora | None = None
    """Low-rank adapters through peft for models of the hub; null: all weights are trained."""


class Decoding(SpecModel):
    """How text is written unless a method says otherwise."""

    block: int = Field(12, ge=1)
    """Positions of a block; blocks are written from left to right."""
    stop: Literal["never", "eos", "truncate"] = "never"
    """``eos``: a text is finished when everything before its first end is written; ``truncate``: what is behind an end
    also leaves the canvas; ``never``: every position of the canvas is written."""
    cached: bool = False
    """Keys and values of all that is outside the current block are kept from the first forward of the block."""


class Evaluation(SpecModel):
    """How decoders are scored."""

    batch_size: int = Field(256, ge=1)
    """Prompts that are decoded at a time."""
    thresholds: tuple[float, ...] = (0.99, 0.95, 0.9, 0.8, 0.7, 0.5, 0.3)
    """Operating points of decoders with a threshold, most careful first."""
    factors: tuple[float, ...] = (0.25, 0.5, 0.75, 1.0, 1.5, 2.0)
    """Of decoders with a factor."""
    double: bool = True
    """Networks compute in float64, so that a result does not depend on what else is in a batch."""


class Gate(SpecModel):
    """What the teacher must be like before a board says anything about parallel decoding; on validation data."""

    accuracy: float | None = 0.9
    """Of one token per step on problems with one solution, at least; null: not asked for."""
    speedup: float | None = 1.5
    """Forwards of one token per step over those of the oracle, at least."""


class DllmSpec(TaskSpec):
    """A fully resolved task of the track ``dllm``."""

    headline: Metric = Metric(name="aup", direction="max", bounds=(0.0, None), unit="% x tokens/forward")
    floor: str = "seq"
    ceiling: str = "oracle"
    data: DllmData
    teacher: Annotated[Trained | Hub, Field(discriminator="kind")] = Trained()
    student: Student = Student()
    decoding: Decoding = Decoding()
    gate: Gate | None = None
    evaluation: Evaluation = Evaluation()

    @model_validator(mode="after")
    def _consistent(self) -> DllmSpec:
        if isinstance(self.teacher, Hub) != isinstance(self.data, HubProblemsData):
            raise ValueError("a teacher of kind 'hub' belongs to data of kind 'hf-problems', and they need it")
        if self.student.lora is not None and not isinstance(self.teacher, Hub):
            raise ValueError(
                "adapters (student.lora) are for models of the hub; networks of the task are trained whole"
            )
        if self.data.length % self.decoding.block:
            raise ValueError(f"length {self.data.length} is not a multiple of block {self.decoding.block}")
        if isinstance(self.teacher, Hub) and self.decoding.cached:
            raise ValueError("models of the hub are decoded without a cache (decoding.cached)")
        return self

    # --- what is made before jobs -------------------------------------------------------------------------------------

    def teacher_identity(self) -> dict[str, Any]:
        """Everything that decides a teacher's weights."""
        return {
            "track": "dllm",
            "format": TEACHER_FORMAT,
            "data": self.data.decides_teacher(),
            "teacher": self.teacher.model_dump(mode="json"),
            "seed": self.teacher_seed,
        }

    def causal_identity(self) -> dict[str, Any]:
        """Everything that decides the causal reference of the same size."""
        return {**self.teacher_identity(), "causal": True}

    def text_key(self, split: str, count: int | None = None, temperature: float = 0.0) -> dict[str, Any]:
        """What the teacher's own text for the prompts of a split is found by."""
        return {
            "teacher": self.teacher_identity(),
            "data": self.data.model_dump(mode="json"),
            "decoding": self.decoding.model_dump(mode="json"),
            "double": self.evaluation.double and split != "train",
            "split": split,
            "count": count,
            "temperature": temperature,
        }

    def gap_key(self) -> dict[str, Any]:
        """Everything that decides what the gate looks at."""
        return self.text_key("val")

    def teacher_key(self) -> str | None:
        return digest(self.teacher_identity())

    def teacher_needs(self) -> list[tuple[str, Any, str]]:
        if isinstance(self.teacher, Hub):
            return []
        needs: list[tuple[str, Any, str]] = [
            ("teacher", self.teacher_identity(), f"teacher of {self.name}"),
            ("teacher", self.causal_identity(), f"causal reference of {self.name}"),
        ]
        if self.gate is not None:
            needs.append(("gap", self.gap_key(), f"capacity gap of {self.name}"))
        return needs

    def problems(self) -> list[Problem]:
        place = f"task {self.name}@{self.scale}"
        found = [
            Problem(place, f"package {module!r} is not installed", f"pip install {module}")
            for module in (*self.requires, *(("peft",) if self.student.lora is not None else ()))
            if importlib.util.find_spec(module) is None
        ]
        paths = {"teacher.name": self.teacher.name} if isinstance(self.teacher, Hub) else {}
        if isinstance(self.data, HubProblemsData):
            paths["data.path"] = self.data.path
        for field, path in paths.items():
            if looks_local(path) and not Path(path).expanduser().exists():
                hint = "a path starts with /, ./, ../ or ~; everything else is a name on the hub"
                found.append(Problem(f"{place}: {field}", f"there is no folder {path}", hint))
        return found
