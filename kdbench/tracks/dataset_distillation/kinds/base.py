"""What every kind of data has to say."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from kdbench.cache import Cache
from kdbench.task import Scores
from kdbench.tracks.dataset_distillation.distilled.base import Distilled

if TYPE_CHECKING:
    from kdbench.tracks.dataset_distillation.spec import DDSpec
    from kdbench.tracks.dataset_distillation.task import DDTask


class Kind(ABC):
    """One kind of data, bound to a task's specification and cache."""

    classes: int

    def __init__(self, spec: DDSpec, cache: Cache) -> None:
        self.spec, self.cache = spec, cache

    # --- data and networks ------------------------------------------------------------------------------------------

    @abstractmethod
    def split(self, name: str) -> Any:
        """``train``, ``val`` or ``test``, on the CPU; the same for the same specification."""

    @abstractmethod
    def build(self, arch: str) -> nn.Module:
        """A network, initialised from the global generators."""

    @abstractmethod
    def fit_member(self, network: nn.Module, generator: torch.Generator, device: torch.device) -> None:
        """Train a member of the committee in place on the real data, as ``spec.training`` says."""

    # --- distilled sets ---------------------------------------------------------------------------------------------

    @abstractmethod
    def check(self, task: DDTask, distilled: Distilled) -> None:
        """Raise ``ArtifactError`` for a set of another kind, of other shapes or values, or larger than the budget."""

    @abstractmethod
    def whole(self, task: DDTask) -> Distilled:
        """What the ceiling returns: the training set itself."""

    @abstractmethod
    def whole_floats(self, task: DDTask) -> Mapping[str, int]:
        """See :meth:`kdbench.tracks.dataset_distillation.distilled.base.Distilled.floats`."""

    @abstractmethod
    def random(self, task: DDTask, generator: torch.Generator) -> Distilled:
        """What the floor returns: a random part of the training set that has the size of the budget."""

    # --- scores -----------------------------------------------------------------------------------------------------

    @abstractmethod
    def references(self, task: DDTask) -> dict[str, float]:
        """Test accuracy of training on the whole set (``whole``) and on random parts (``random``); kept in the
        cache."""

    @abstractmethod
    def validate(self, task: DDTask, distilled: Distilled) -> dict[str, float]:
        """Validation metrics of one network that learned from the set."""

    @abstractmethod
    def measure(self, task: DDTask, distilled: Distilled) -> Scores:
        """All metrics against the test data; called in evaluation alone."""
