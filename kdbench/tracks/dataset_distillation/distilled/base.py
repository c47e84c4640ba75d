"""What ``train`` returns: a small data set that fresh networks learn from."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from kdbench.errors import ArtifactError

if TYPE_CHECKING:
    from kdbench.tracks.dataset_distillation.task import DDTask

KINDS: dict[str, type[Distilled]] = {}
MODULES = ("images", "compensated", "whole", "graphset", "trees")
"""Modules of this package with the kinds that come with the track."""


class Distilled(ABC):
    """A distilled data set."""

    kind: ClassVar[str]
    """Name that saved sets are found by."""

    def __init_subclass__(cls, **rest: object) -> None:
        super().__init_subclass__(**rest)
        if "kind" in vars(cls):
            KINDS[cls.kind] = cls

    @abstractmethod
    def floats(self, task: DDTask) -> Mapping[str, int]:
        """Numbers that have to be kept: ``data`` (images, perturbations) and ``labels`` beyond one class per image."""

    @abstractmethod
    def save(self, folder: Path) -> None:
        """Write what :meth:`load` reads."""

    @classmethod
    @abstractmethod
    def load(cls, folder: Path, task: DDTask) -> Distilled:
        """Read what :meth:`save` wrote."""


def distilled_of_kind(kind: str) -> type[Distilled]:
    """The class of a saved set. Raises ``ArtifactError`` for a kind that only its method knows."""
    for module in MODULES:
        if kind in KINDS:
            break
        import_module(f"kdbench.tracks.dataset_distillation.distilled.{module}")
    if kind not in KINDS:
        raise ArtifactError(f"a distilled set of kind {kind!r} cannot be read here; known: {', '.join(sorted(KINDS))}")
    return KINDS[kind]
