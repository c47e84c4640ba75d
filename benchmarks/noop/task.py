"""A task without data: its student has two weights, and every model scores what its first weight says."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import nn

from kdbench.task import Scores, Task


class NoopTask(Task):
    """What the runner needs of a task, and nothing that takes time."""

    def build_student(self) -> nn.Module:
        return nn.Linear(1, 1)

    def build_teacher(self) -> nn.Module:
        return nn.Linear(1, 1)

    def load_teacher(self) -> nn.Module:
        return self.build_teacher()

    def train_loader(self) -> Iterable[Any]:
        return []

    def validate(self, model: Any) -> dict[str, float]:
        return {"score": float(model.weight.detach().sigmoid())}

    def score_test(self, model: Any) -> Scores:
        self.require_evaluation()
        return Scores(self.validate(model))

    def check(self, model: Any) -> None:
        self.require(model, nn.Linear)

    def save(self, model: Any, folder: Path) -> None:
        folder.mkdir(parents=True)
        save_file(model.state_dict(), folder / "model.safetensors")

    def load(self, folder: Path) -> nn.Module:
        model = self.build_student()
        model.load_state_dict(load_file(folder / "model.safetensors"))
        return model
