"""kdbench: the place where knowledge-distillation methods are compared.

What a method author imports: ``hookimpl``, ``Paper``, ``Baseline``, ``Compare``, ``Params``, ``Field``.
What a user of results imports: ``run`` and ``results``. Everything is loaded on first use.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kdbench.api import results, run
    from kdbench.cards import Baseline, Compare, Paper
    from kdbench.hookspecs import hookimpl
    from kdbench.params import Field, Params

__version__ = "0.1.0"

_HOMES = {
    "Baseline": "kdbench.cards",
    "Compare": "kdbench.cards",
    "Field": "kdbench.params",
    "Paper": "kdbench.cards",
    "Params": "kdbench.params",
    "hookimpl": "kdbench.hookspecs",
    "results": "kdbench.api",
    "run": "kdbench.api",
}

__all__ = ["Baseline", "Compare", "Field", "Paper", "Params", "__version__", "hookimpl", "results", "run"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'kdbench' has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
