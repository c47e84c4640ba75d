"""The target alone: one forward for each token."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import nn

from kdbench.tracks.decoding.decoders.base import Decoded, Decoder
from kdbench.tracks.decoding.decoders.speculative import speculate


class Autoregressive(Decoder):
    """One forward of the target for each token."""

    kind: ClassVar[str] = "autoregressive"

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
        options: dict[str, Any] = {"max_new": max_new, "eos": eos, "pad": pad}
        return speculate(target, None, prompts, gamma=0, temperature=temperature, generator=generator, **options)

    def save(self, folder: Path) -> None:
        """Nothing but the folder: all that it needs is the target."""
        folder.mkdir(parents=True, exist_ok=True)

    @classmethod
    def load(cls, folder: Path, task: Any) -> Autoregressive:
        return cls()
