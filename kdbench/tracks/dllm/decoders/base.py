"""What methods of the track return: a network with the way in which it writes."""

from __future__ import annotations

import json
import pkgutil
from abc import ABC, abstractmethod
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import nn

from kdbench.errors import ArtifactError, did_you_mean
from kdbench.tracks.dllm.batches import Prompts
from kdbench.tracks.dllm.decoding import Written

if TYPE_CHECKING:
    from kdbench.tracks.dllm.task import DllmTask

__all__ = ["Decoder", "Written", "decoder_of_kind", "load_predictor", "save_predictor"]


class Decoder(ABC):
    """A way to write. Subclasses are found by their :attr:`kind` when they are loaded."""

    kind: ClassVar[str] = ""
    kinds: ClassVar[dict[str, type[Decoder]]] = {}

    def __init_subclass__(cls, **rest: Any) -> None:
        super().__init_subclass__(**rest)
        if cls.kind:
            known = Decoder.kinds.setdefault(cls.kind, cls)
            if (known.__module__, known.__qualname__) != (cls.__module__, cls.__qualname__):
                raise TypeError(f"{known.__module__} and {cls.__module__} both have a decoder of kind {cls.kind!r}")

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


def decoder_of_kind(kind: str) -> type[Decoder]:
    """The class of a saved decoder. Raises ``ArtifactError`` for a kind that there is not."""
    package = import_module(__package__)
    for module in pkgutil.iter_modules(package.__path__):
        import_module(f"{__package__}.{module.name}")
    if kind not in Decoder.kinds:
        hint = did_you_mean(kind, sorted(Decoder.kinds), label="kinds")
        raise ArtifactError(f"no decoder is of kind {kind!r}; {hint}")
    return Decoder.kinds[kind]
