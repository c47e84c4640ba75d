"""What methods of the track return: a network with the way in which it writes."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from kdbench.tracks.dllm.batches import Prompts
from kdbench.tracks.dllm.decoding import Written
from kdbench.training.kinds import OfKind

if TYPE_CHECKING:
    from kdbench.tracks.dllm.task import DllmTask

__all__ = ["Decoder", "Written", "load_predictor", "save_predictor"]


class Decoder(OfKind, ABC, noun="decoder", modules=["kdbench.tracks.dllm.decoders"]):
    """A way to write. Subclasses are found by their :attr:`kind` when they are loaded."""

    @abstractmethod
    def decode(
        self, prompts: Prompts, *, generator: torch.Generator | None = None, budget: int | None = None, **options: Any
    ) -> Written:
        """Write after prompts; options are those of :func:`kdbench.tracks.dllm.decoding.decode`."""

    def frontier(self) -> Sequence[Decoder]:
        """The same at other operating points, the most careful first: the points of its curve of accuracy and speed."""
        return [self]

    def networks(self) -> dict[str, nn.Module]:
        """All networks that it writes with."""
        return {}

    @abstractmethod
    def save(self, folder: Path, task: DllmTask) -> None:
        """Write everything that :meth:`load` needs."""

    @classmethod
    @abstractmethod
    def load(cls, folder: Path, task: DllmTask) -> Decoder:
        """Read what :meth:`save` wrote."""


def save_predictor(net: nn.Module, folder: Path, task: DllmTask) -> None:
    """Write a mask predictor; of the task's own teacher no more than that it is the teacher."""
    from kdbench.tracks.dllm.networks.build import save_network

    folder.mkdir(parents=True, exist_ok=True)
    own = net is not task.teacher()
    (folder / "source.json").write_text(json.dumps({"source": "weights" if own else "teacher"}) + "\n")
    if own:
        save_network(net, folder)


def load_predictor(folder: Path, task: DllmTask) -> nn.Module:
    """Read what :func:`save_predictor` wrote, on the task's device and in evaluation mode."""
    from kdbench.tracks.dllm.networks.build import load_network

    if json.loads((folder / "source.json").read_text())["source"] == "teacher":
        teacher: nn.Module = task.teacher()
        return teacher
    net: nn.Module = task.place(load_network(folder, task.spec)).eval()
    return net
