"""Speculative decoders that come with a second network: one to be looked at, or a target of their own."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import nn

from kdbench.tracks.decoding.decoders.base import Decoded, save_network
from kdbench.tracks.decoding.decoders.speculative import Lenience, Speculative


class WithReference(Speculative):
    """A draft beside the reference network that its training was guided by, which takes no part in decoding."""

    kind: ClassVar[str] = "speculative-reference"

    def __init__(
        self, draft: nn.Module, reference: nn.Module, gamma: int = 5, lenience: Lenience | None = None
    ) -> None:
        super().__init__(draft, gamma, lenience)
        self.reference = reference

    def at(self, gamma: int, lenience: Lenience | None = None) -> WithReference:
        return type(self)(self.draft, self.reference, gamma, lenience)

    def save(self, folder: Path) -> None:
        super().save(folder)
        save_network(self.reference, folder / "reference")

    @classmethod
    def load(cls, folder: Path, task: Any) -> WithReference:
        draft, reference = (task.load_network(folder / name) for name in ("draft", "reference"))
        return cls(draft, reference, task.spec.evaluation.gamma)


class OwnTarget(Speculative):
    """A draft for a smaller target, which writes in place of the task's: faster, and not the same text."""

    kind: ClassVar[str] = "speculative-own-target"
    own_target: ClassVar[bool] = True

    def __init__(self, draft: nn.Module, target: nn.Module, gamma: int = 5, lenience: Lenience | None = None) -> None:
        super().__init__(draft, gamma, lenience)
        self.target = target

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
        """As every decoder, with the target that it has: ``target`` is not asked."""
        options: dict[str, Any] = {"temperature": temperature, "generator": generator}
        return super().decode(self.target, prompts, max_new=max_new, eos=eos, pad=pad, **options)

    def at(self, gamma: int, lenience: Lenience | None = None) -> OwnTarget:
        return type(self)(self.draft, self.target, gamma, lenience)

    def networks(self) -> dict[str, nn.Module]:
        return {"draft": self.draft, "target": self.target}

    def save(self, folder: Path) -> None:
        super().save(folder)
        save_network(self.target, folder / "target")

    @classmethod
    def load(cls, folder: Path, task: Any) -> OwnTarget:
        draft, target = (task.load_network(folder / name) for name in ("draft", "target"))
        return cls(draft, target, task.spec.evaluation.gamma)
