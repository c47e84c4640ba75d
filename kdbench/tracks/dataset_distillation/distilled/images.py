"""Images with the classes that they stand for, what several of them share, and how their soft labels are made."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from kdbench.tracks.dataset_distillation.blocks.labelling import Labelling
from kdbench.tracks.dataset_distillation.distilled.base import Distilled

if TYPE_CHECKING:
    from kdbench.tracks.dataset_distillation.task import DDTask

TENSORS, ABOUT = "images.safetensors", "images.json"


@dataclass
class ImageSet(Distilled):
    """A distilled set of images.

    What is kept are ``base`` and ``shared``; what networks learn from are the sums of their rows that ``rows`` names.
    """

    kind: ClassVar[str] = "images"
    base: Tensor
    """(N, C, H, W) float32, normalised as the task's images."""
    labels: Tensor
    """(N,) int64 classes."""
    labelling: Labelling = field(default_factory=Labelling)
    """How the labels are made that networks learn from; classes alone by default."""
    shared: Tensor | None = None
    """(G, C, H, W): perturbations that are added to images of several classes."""
    rows: Tensor | None = None
    """(R, 2) int64: an image of the set is ``base[rows[:, 0]] + shared[rows[:, 1]]``, -1: nothing is added; None: the
    images of ``base`` as they are."""
    facts: dict[str, float] = field(default_factory=dict, kw_only=True)
    """What the method found out while it made the set, for its own ``evaluate``; nothing that networks learn from."""

    def images(self) -> Tensor:
        """(R, C, H, W): what networks learn from."""
        if self.rows is None:
            return self.base
        found = self.base[self.rows[:, 0]]
        if self.shared is None:
            return found
        added = self.shared[self.rows[:, 1].clamp(min=0)]
        return found + added * (self.rows[:, 1] >= 0).to(added.dtype)[:, None, None, None]

    def classes(self) -> Tensor:
        """(R,) int64."""
        return self.labels if self.rows is None else self.labels[self.rows[:, 0]]

    def floats(self, task: DDTask) -> dict[str, int]:
        images = self.base.numel() + (0 if self.shared is None else self.shared.numel())
        count = len(self.classes())
        return {"data": images, "labels": self.labelling.floats(count, task.classes, task.epochs(count))}

    def save(self, folder: Path) -> None:
        tensors = {"base": self.base, "labels": self.labels, "shared": self.shared, "rows": self.rows}
        kept = {name: value.detach().cpu().contiguous() for name, value in tensors.items() if value is not None}
        save_file(kept, folder / TENSORS)
        (folder / ABOUT).write_text(
            json.dumps({"labelling": asdict(self.labelling), "facts": self.facts}, indent=1) + "\n"
        )

    @classmethod
    def load(cls, folder: Path, task: DDTask) -> ImageSet:
        found = {name: value.to(task.device) for name, value in load_file(folder / TENSORS).items()}
        about = json.loads((folder / ABOUT).read_text())
        named = {name: tuple(v) if isinstance(v, list) else v for name, v in about["labelling"].items()}
        parts = (found["base"], found["labels"], Labelling(**named), found.get("shared"), found.get("rows"))
        return cls(*parts, facts=about["facts"])


def expansion(base: int, shared: int) -> Tensor:
    """(base * (shared + 1), 2) rows of an :class:`ImageSet`: every image as it is, then with each perturbation."""
    images, added = torch.arange(base), torch.arange(-1, shared)
    return torch.stack([images.repeat(len(added)), added.repeat_interleave(base)], 1)
