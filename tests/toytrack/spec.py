"""Specification of the toy tasks."""

from __future__ import annotations

from typing import Literal

from kdbench.spec import SpecModel, TaskSpec, digest


class ToyTeacher(SpecModel):
    steps: int = 20
    fault: Literal["", "raise", "die"] = ""
    """What goes wrong when it is trained."""
    wait: float = 0.0
    """Seconds that its training takes longer."""


class ToySpec(TaskSpec):
    examples: int = 64
    features: int = 4
    teacher: ToyTeacher | None = None
    refuses: tuple[str, ...] = ()
    """Why it refuses a board."""

    def teacher_key(self) -> str | None:
        if self.teacher is None:
            return None
        return digest([self.name, self.examples, self.features, self.teacher.model_dump(), self.teacher_seed])
