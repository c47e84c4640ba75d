"""State that training carries from step to step beside the weights, in a form that a checkpoint can keep."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, runtime_checkable


@runtime_checkable
class Stateful(Protocol):
    """What can be put into a checkpoint and put back: modules, optimizers, and what a method writes in this form.

    ``state_dict`` gives tensors, numbers, strings, None, and lists, tuples and dicts of these.
    """

    def state_dict(self) -> Any: ...

    def load_state_dict(self, state: Any) -> object: ...


class Values:
    """Named values that change during training, for ``task.fit(..., state=[...])``.

    ``seen = Values(tokens=0)`` and then ``seen.tokens += 1`` in a loss, in place of a ``nonlocal`` or a dict. Classes
    that derive from it name in ``kept`` the attributes that change; without names all are kept.
    """

    kept: ClassVar[tuple[str, ...]] = ()

    def __init__(self, **values: Any) -> None:
        vars(self).update(values)

    def __getattr__(self, name: str) -> Any:  # for type checkers: any name may be given
        raise AttributeError(f"{type(self).__name__} has no value {name!r}")

    if TYPE_CHECKING:

        def __setattr__(self, name: str, value: Any) -> None: ...

    def state_dict(self) -> dict[str, Any]:
        names = type(self).kept or vars(self)  # a value may be called "kept", too
        return {name: vars(self)[name] for name in names}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        vars(self).update(state)
