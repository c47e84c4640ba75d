"""What a task of the track ``reasoning_rl`` is. Free of torch."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from kdbench.errors import Problem
from kdbench.spec import SpecModel, digest
from kdbench.tracks.llm.spec import Evaluation, Hub, LLMSpec, Net, _model_problems
from kdbench.tracks.reasoning_rl.data.specs import Family, ReasoningData
from kdbench.tracks.reasoning_rl.data.styles import STYLES
from kdbench.tracks.reasoning_rl.kinds import KINDS

FORMAT = 2
"""Bumped when the same specification gives other checkpoints."""


class ReasonStage(SpecModel):
    """One stretch of training of a checkpoint."""

    objective: Literal["mix", "sft", "grpo"]
    """``mix``: worked solutions behind plain and conditioned prompts; ``sft``: behind plain prompts, or fewer
    conditioned ones, so that contexts are not forgotten; ``grpo``: the verifier's reward on own responses."""
    steps: int = Field(ge=1)
    batch_size: int = Field(32, ge=1)
    """Rows, or prompts of ``grpo``."""
    lr: float = Field(2e-3, gt=0)
    weight_decay: float = Field(0.01, ge=0)
    plain: float | None = Field(None, ge=0, le=1)
    """Share of plain prompts; null: 0.4 of ``mix``, all of ``sft``."""
    style: Literal["terse", "verbose", "check", "reverse"] = "terse"
    """How solutions are written."""
    families: tuple[Family, ...] | None = None
    """Null: of ``mix`` all, of ``sft`` all but the one to retain, of ``grpo`` those of the task."""
    group: int = Field(8, ge=2)
    """``grpo``: responses a prompt."""
    temperature: float = Field(1.0, gt=0)
    """``grpo``: at which they are sampled."""


class Policy(Net):
    """A network built from a configuration, with the stages that make it a checkpoint."""

    stages: tuple[ReasonStage, ...] = ()  # type: ignore[assignment]

    def up_to(self, objectives: tuple[str, ...]) -> Policy:
        """The checkpoint before the first stage of another objective."""
        kept = []
        for stage in self.stages:
            if stage.objective not in objectives:
                break
            kept.append(stage)
        return self.model_copy(update={"stages": tuple(kept)})


class Experts(SpecModel):
    """Networks of the student's size that go on from the student by reinforcement learning on some families."""

    stage: ReasonStage
    families: dict[str, tuple[Family, ...]]
    """Families by name of the expert, such as ``arith``."""

    @model_validator(mode="after")
    def _check(self) -> Experts:
        if self.stage.objective != "grpo":
            raise ValueError(f"experts are made by grpo, not {self.stage.objective}")
        return self


class Calibration(SpecModel):
    """What checkpoints must be like before a board says anything; null: not asked for. All on validation problems."""

    student: tuple[float, float] | None = (0.15, 0.6)
    """pass@1 of the student in each family, least and most."""
    explore: float | None = 0.15
    """The student's pass@8 minus its pass@1, at least: there is something to reinforce."""
    hard: float | None = 0.15
    """Share of problems that the student never solves in 8 samples, at least: there is something to be taught."""
    teacher: float | None = 0.2
    """pass@1 of the teacher minus the student's, at least."""
    reference: float | None = 0.2
    """pass@1 behind a reference solution minus plain pass@1 of the student, at least."""
    critique: float | None = 0.1
    """The same behind an attempt and the verifier's critique, on the student's own wrong attempts."""
    samples: int = Field(8, ge=8, le=64)
    problems: int = Field(96, ge=2)
    """Validation problems that are looked at."""


class ReasoningEvaluation(Evaluation):
    """How models are scored."""

    batch_size: int = Field(512, ge=1)
    max_new: int = Field(48, ge=1)
    """Longest response in tokens, in training and evaluation."""
    ood_max_new: int = Field(72, ge=1)
    """Longest response to the longer problems."""
    temperature: float = Field(0.6, gt=0)
    """At which test problems are answered."""
    acc_samples: int = Field(4, ge=1)
    """Responses a test problem that the headline is the mean over."""
    samples: int = Field(16, ge=1)
    """Responses a test problem that pass@k is estimated from; at least ``acc_samples``."""

    @model_validator(mode="after")
    def _check(self) -> ReasoningEvaluation:
        if self.samples < self.acc_samples:
            raise ValueError(f"samples {self.samples} are less than acc_samples {self.acc_samples}")
        return self


class ReasoningSpec(LLMSpec):
    """A task of the track ``reasoning_rl``."""

    kinds: ClassVar[Mapping[str, str]] = KINDS
    floor: str = "base"
    ceiling: str = "teacher"
    data: ReasoningData  # type: ignore[assignment]
    tokenizer: Literal["words", "teacher"] = "words"  # type: ignore[assignment]
    """``words``: the fixed vocabulary of the procedural problems; ``teacher``: the one that comes with the teacher."""
    teacher: Annotated[Policy | Hub, Field(discriminator="kind")]  # type: ignore[assignment]
    student: Annotated[Policy | Hub, Field(discriminator="kind")]  # type: ignore[assignment]
    experts: Experts | None = None
    peers: Policy | None = None
    """Shape and stages of four more teachers, each with a style of its own in its last stage."""
    models: dict[str, Hub] = {}
    """Further checkpoints of pretrained models by name, such as ``teacher_sft`` or ``expert_arith``."""
    evaluation: ReasoningEvaluation = ReasoningEvaluation()
    reward: Literal["binary", "binary+format", "rubric"] = "binary"
    """Of a response in training: 1 where it is right; with a tenth of it for an answer at the end; or the share of the
    constraints that it meets."""
    gate: Calibration | None = None  # type: ignore[assignment]

    @model_validator(mode="after")
    def _policies(self) -> ReasoningSpec:
        if isinstance(self.teacher, Policy) != (self.data.kind == "minireason"):
            raise ValueError("networks built from a configuration and data 'minireason' belong together")
        for policy in self.policies().values():
            order = [("mix", "sft", "grpo").index(stage.objective) for stage in policy.stages]
            if order != sorted(order):
                raise ValueError("stages come in the order mix, sft, grpo")
        return self

    def policies(self) -> dict[str, Policy]:
        """Every checkpoint that is trained here, by name."""
        if not isinstance(self.student, Policy) or not isinstance(self.teacher, Policy):
            return {}
        found = {
            "student_base": self.student.up_to(("mix",)),
            "student_sft": self.student,
            "teacher_sft": self.teacher.up_to(("mix", "sft")),
            "teacher_rl": self.teacher,
        }
        if self.experts is not None:
            for name, families in self.experts.families.items():
                last = self.experts.stage.model_copy(update={"families": families})
                found[f"expert_{name}"] = self.student.model_copy(update={"stages": (*self.student.stages, last)})
        if self.peers is not None:
            for i, style in enumerate(STYLES, 1):
                last = self.peers.stages[-1].model_copy(update={"style": style})
                found[f"peer_{i}"] = self.peers.model_copy(update={"stages": (*self.peers.stages[:-1], last)})
        return found

    def checkpoint_names(self) -> tuple[str, ...]:
        """Names that ``task.checkpoint`` takes."""
        return tuple(self.policies()) or ("student_sft", "teacher_rl", *self.models)

    def policy_key(self, policy: Policy) -> dict[str, Any]:
        """Everything that decides the weights of a checkpoint."""
        return {
            "track": self.track,
            "data": self.data.decides_teacher(),
            "max_new": self.evaluation.max_new,
            "reward": self.reward,
            "model": policy.model_dump(mode="json"),
            "seed": self.teacher_seed,
            "format": FORMAT,
        }

    def teacher_identity(self) -> dict[str, Any]:
        return self.policy_key(self.teacher) if isinstance(self.teacher, Policy) else super().teacher_identity()

    def student_identity(self) -> dict[str, Any]:
        return self.policy_key(self.student) if isinstance(self.student, Policy) else super().student_identity()

    def teacher_key(self) -> str:
        return digest(self.teacher_identity())

    def teacher_needs(self) -> list[tuple[str, Any, str]]:
        """The checkpoints that are trained here, and their calibration."""
        needs: list[tuple[str, Any, str]] = [
            ("teacher", self.policy_key(policy), f"{name} of {self.name}")
            for name, policy in self.policies().items()
            if policy.stages
        ]
        if self.gate is not None and needs:
            needs.append(("gap", self.gap_key(), f"calibration of {self.name}"))
        return needs

    def gap_key(self) -> dict[str, Any]:
        assert self.gate is not None
        return {
            "teacher": self.teacher_identity(),
            "student": self.student_identity(),
            "problems": self.gate.problems,
            "samples": self.gate.samples,
            "temperature": self.evaluation.temperature,
        }

    def problems(self) -> list[Problem]:
        found = super().problems()
        place = f"task {self.name}@{self.scale}"
        offline = os.environ.get("HF_HUB_OFFLINE", "0") not in ("", "0")
        for name, model in self.models.items():
            found += _model_problems(place, name, model.name, offline)
        return found
