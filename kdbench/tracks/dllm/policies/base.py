"""What decides which predictions of a forward are committed."""

from __future__ import annotations

import json
import pkgutil
from abc import ABC, abstractmethod
from dataclasses import asdict, fields, is_dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor, nn

from kdbench.errors import ArtifactError, did_you_mean

if TYPE_CHECKING:
    from kdbench.tracks.dllm.decoding import View


class DecodingPolicy(ABC):
    """Chooses what is committed. Subclasses are frozen dataclasses of plain values, found by their :attr:`kind`."""

    kind: ClassVar[str] = ""
    kinds: ClassVar[dict[str, type[DecodingPolicy]]] = {}

    def __init_subclass__(cls, **rest: Any) -> None:
        super().__init_subclass__(**rest)
        if cls.kind:
            known = DecodingPolicy.kinds.setdefault(cls.kind, cls)
            if (known.__module__, known.__qualname__) != (cls.__module__, cls.__qualname__):
                raise TypeError(f"{known.__module__} and {cls.__module__} both have a policy of kind {cls.kind!r}")

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


def policy_of_kind(kind: str) -> type[DecodingPolicy]:
    """The class of a saved policy. Raises ``ArtifactError`` for a kind that there is not."""
    package = import_module(__package__)
    for module in pkgutil.iter_modules(package.__path__):
        import_module(f"{__package__}.{module.name}")
    if kind not in DecodingPolicy.kinds:
        raise ArtifactError(
            f"no policy is of kind {kind!r}; {did_you_mean(kind, sorted(DecodingPolicy.kinds), label='kinds')}"
        )
    return DecodingPolicy.kinds[kind]
