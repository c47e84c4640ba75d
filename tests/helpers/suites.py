"""Suites over the toy track, without running anything."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from kdbench.cache import Cache
from kdbench.plan import Plan, make_plan
from kdbench.registry import Registry, discover
from kdbench.suite import suite_of
from tests.toytrack import CARD, EXTENSION, PLAIN, write_method

BASE: dict[str, Any] = {"tasks": ["toy/line@smoke"], "methods": ["plain"], "seeds": 1}

TUNED = """
class Tuned(Params):
    alpha: float = Field(0.1, ge=0, le=1, description="weight of the teacher")
    beta: float = Field(1.0, gt=0, description="temperature")
    mode: Literal["hard", "soft"] = Field("soft", description="kind of targets")
    layers: list[int] = Field([1, 2], description="which layers")


@hookimpl
def train(task, params):
    raise AssertionError("planning executes no method")
"""


def write_methods(folder: Path) -> Path:
    """A folder with ``toy/plain``, ``toy/tuned`` (parameters), ``toy/lineal`` (for the task ``line`` alone)."""
    write_method(folder, "plain")
    tuned = write_method(folder, "tuned", TUNED)
    tuned.write_text("from typing import Literal\n" + tuned.read_text())
    only = CARD.format(slug="lineal").replace('tasks=["*"]', 'tasks=["line"]')
    (folder / "lineal.py").write_text(only + textwrap.dedent(PLAIN))
    return folder


def toy_registry(folder: Path) -> Registry:
    """The toy track and the methods of :func:`write_methods`, beside all that is installed."""
    return registry_of(write_methods(folder))


def registry_of(folder: Path) -> Registry:
    """The toy track and the methods in a folder, beside all that is installed."""
    return discover([EXTENSION, folder])


def planner(registry: Registry, folder: Path) -> Callable[..., Plan]:
    """Plans of small suites: ``make({"seeds": 2})`` is what differs from one job of ``toy/plain``; results and cache
    are in ``folder``."""

    def make(
        data: Mapping[str, Any] | None = None, results: Path = folder, registry: Registry = registry, **options: Any
    ) -> Plan:
        return make_plan(
            suite_of({**BASE, **(data or {})}), registry, results, cache=Cache(folder / "cache"), **options
        )

    return make
