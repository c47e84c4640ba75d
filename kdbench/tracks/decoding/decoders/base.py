"""What a way to decode is: the thing that methods of the track return and that boards compare."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import nn

from kdbench.tracks.decoding.decoders.session import Counter
from kdbench.training.kinds import OfKind

__all__ = ["Counter", "Decoded", "Decoder", "save_network"]


@dataclass
class Decoded:
    """What was written after each prompt, and what it has cost."""

    tokens: list[list[int]]
    """Response ids of each prompt, the end token included where it was given."""
    forwards: list[int]
    """Forwards of the target in which the row of each prompt took part, without the prefill."""
    extra: dict[str, list[float]] = field(default_factory=dict)
    """Further counts by prompt: ``proposed``, ``accepted``, ``draft_forwards``, ..."""
    counters: dict[str, Counter] = field(default_factory=dict)
    """What each model was asked in all, over the whole batch: ``target``, ``draft``."""

    @property
    def block_efficiency(self) -> float:
        """Tokens per forward of the target, over all prompts (tau)."""
        return sum(map(len, self.tokens)) / max(1, sum(self.forwards))


class Decoder(OfKind, ABC, noun="decoder", modules=["kdbench.tracks.decoding.decoders"]):
    """A way to decode with the task's target. Subclasses are found by their :attr:`kind` when they are loaded."""

    own_target: ClassVar[bool] = False
    """Whether it writes with a model of its own, so that nothing is lossless with respect to the task's target."""

    @abstractmethod
    def decode(
        self,
        target: nn.Module,
        prompts: Sequence[Sequence[int]],
        *,
        max_new: int,
        eos: int,
        pad: int,
        temperature: float = 0.0,
        generator: torch.Generator | None = None,
    ) -> Decoded:
        """Continue each prompt by up to ``max_new`` tokens or to ``eos``; ``temperature`` 0 is greedy.

        Raises ``ValueError`` where sampling has no ``generator``.
        """

    def networks(self) -> dict[str, nn.Module]:
        """Networks that it has beside the task's target."""
        return {}

    @abstractmethod
    def save(self, folder: Path) -> None:
        """Write everything that :meth:`load` needs."""

    @classmethod
    @abstractmethod
    def load(cls, folder: Path, task: Any) -> Decoder:
        """Read what :meth:`save` wrote; ``task`` is the :class:`~kdbench.tracks.decoding.task.DecodingTask`."""


def save_network(network: Any, folder: Path) -> None:
    """Write a causal language model as transformers does; adapters of peft are merged into the weights."""
    if hasattr(network, "merge_and_unload"):
        network = deepcopy(network).merge_and_unload()
    network.save_pretrained(folder)
