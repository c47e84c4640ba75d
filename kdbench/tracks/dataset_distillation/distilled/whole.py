"""The real training set itself: the upper bound that distilled sets are compared with. No budget applies to it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from kdbench.tracks.dataset_distillation.distilled.base import Distilled

if TYPE_CHECKING:
    from kdbench.tracks.dataset_distillation.task import DDTask


class Whole(Distilled):
    """Stands for the task's training split; it holds nothing, and its cost is shown as that of the whole split."""

    kind: ClassVar[str] = "whole"

    def floats(self, task: DDTask) -> Mapping[str, int]:
        return task.kind.whole_floats(task)

    def save(self, folder: Path) -> None:
        (folder / "whole.json").write_text(json.dumps({"split": "train"}) + "\n")

    @classmethod
    def load(cls, folder: Path, task: DDTask) -> Whole:
        return cls()
