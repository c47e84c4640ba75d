"""What a task of the track is. Suites are checked and planned from this module, so it does not import torch."""

from pydantic import Field

from kdbench.spec import SpecModel, TaskSpec, digest


class Teacher(SpecModel):
    """The network that is trained once and shared."""

    width: int = Field(64, ge=1)
    steps: int = Field(1000, ge=1)
    """Optimizer steps of its training, on points of its own."""


class WavesSpec(TaskSpec):
    """A wave, who teaches it, and who learns it."""

    frequency: float = Field(2.0, gt=0)
    """Periods between -1 and 1."""
    noise: float = Field(0.2, ge=0)
    """Standard deviation of the noise on the student's labels; the teacher's have none."""
    points: int = Field(64, ge=4)
    """Training points of the student."""
    width: int = Field(24, ge=1)
    """Of the student's hidden layers."""
    teacher: Teacher = Teacher()

    def teacher_key(self) -> str:
        """Tasks that agree in all of this share their teacher; student, noise and budget do not decide it."""
        return digest(["waves", self.frequency, self.teacher.model_dump(mode="json"), self.teacher_seed])
