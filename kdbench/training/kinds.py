"""What methods return is found again by the name of its kind: families of classes, one for each track."""

from __future__ import annotations

import pkgutil
from collections.abc import Sequence
from importlib import import_module
from typing import Any, ClassVar, Self

from kdbench.errors import ArtifactError, did_you_mean


class OfKind:
    """Base of a family whose members are found by their :attr:`kind` when they are loaded.

    A family begins with ``class Decoder(OfKind, ABC, noun="decoder", modules=[...])``: ``noun`` is what messages call
    its members, ``modules`` are where those live that come with kdbench, imported at the first search; a package
    stands for all modules in it. Further ones join when the plugin that defines them is imported.
    """

    kind: ClassVar[str] = ""
    """Name that saved ones are found by; without one of its own a class cannot be searched for."""
    _family: ClassVar[_Family]

    def __init_subclass__(cls, *, noun: str = "", modules: Sequence[str] = (), **rest: Any) -> None:
        """Begin a family, or join one. Raises ``TypeError`` for a kind that another class of the family has."""
        super().__init_subclass__(**rest)
        if noun:
            cls._family = _Family(noun, modules)
        elif vars(cls).get("kind"):
            cls._family.add(cls)

    @classmethod
    def of_kind(cls, kind: str) -> type[Self]:
        """The class of a kind. Raises ``ArtifactError``, with a suggestion, for one that the family does not have."""
        return cls._family.find(kind)


class _Family:
    """The classes of a family by their kinds."""

    def __init__(self, noun: str, modules: Sequence[str]) -> None:
        self.noun = noun
        self.modules = tuple(modules)
        self.members: dict[str, type[Any]] = {}

    def add(self, member: type[OfKind]) -> None:
        known = self.members.get(member.kind, member)
        # a module that is imported anew brings the same class once more
        if (known.__module__, known.__qualname__) != (member.__module__, member.__qualname__):
            both = f"{known.__module__} and {member.__module__}"
            raise TypeError(f"{both} both have a {self.noun} of kind {member.kind!r}")
        self.members[member.kind] = member

    def find(self, kind: str) -> type[Any]:
        for name in self.modules:
            module = import_module(name)
            for part in pkgutil.iter_modules(getattr(module, "__path__", ())):
                import_module(f"{name}.{part.name}")
        if kind not in self.members:
            hint = did_you_mean(kind, sorted(self.members), label="kinds")
            raise ArtifactError(f"no {self.noun} is of kind {kind!r}; {hint}")
        return self.members[kind]
