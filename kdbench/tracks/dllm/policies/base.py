"""What decides which predictions of a forward are committed."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from dataclasses import asdict, fields, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor, nn

from kdbench.training.kinds import OfKind

if TYPE_CHECKING:
    from kdbench.tracks.dllm.decoding import View


class DecodingPolicy(OfKind, ABC, noun="policy", modules=["kdbench.tracks.dllm.policies"]):
    """Chooses what is committed. Subclasses are frozen dataclasses of plain values, found by their :attr:`kind`."""

    @abstractmethod
    def commit(self, view: View) -> Tensor:
        """(B, L) bool within ``view.candidates``, at least one position of each row."""

    def sweep(self) -> list[DecodingPolicy]:
        """Operating points of its frontier, the most careful first."""
        return [self]

    def networks(self) -> dict[str, nn.Module]:
        """Networks that it asks beside the mask predictor."""
        return {}

    def save(self, folder: Path) -> None:
        """Write everything that :meth:`load` needs: here the fields."""
        assert is_dataclass(self)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "policy.json").write_text(json.dumps(asdict(self)) + "\n")

    @classmethod
    def load(cls, folder: Path) -> DecodingPolicy:
        """Read what :meth:`save` wrote."""
        values = json.loads((folder / "policy.json").read_text())
        assert is_dataclass(cls)
        known = {field.name for field in fields(cls)}
        return cls(**{name: value for name, value in values.items() if name in known})
