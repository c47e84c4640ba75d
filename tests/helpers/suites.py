"""Suites over the toy track, without running anything."""

from __future__ import annotations

import textwrap
from pathlib import Path

from kdbench.registry import Registry, discover
from tests.toytrack import CARD, EXTENSION, PLAIN, write_method

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
    return discover([EXTENSION, write_methods(folder)])
