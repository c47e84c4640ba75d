"""Tasks of the track at smoke scale, made as the worker makes them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from kdbench.catalog import Catalog
from kdbench.tracks.vision import TRACK
from kdbench.tracks.vision.spec import VisionSpec
from kdbench.tracks.vision.task import VisionTask

CATALOG = Catalog({TRACK.name: TRACK})


@pytest.fixture
def make_spec() -> Callable[..., VisionSpec]:
    """``make_spec(name, scale="smoke", **overrides)``."""

    def make(name: str, scale: str = "smoke", **overrides: object) -> VisionSpec:
        return CATALOG.resolve(f"vision/{name}", scale, overrides)

    return make


@pytest.fixture
def make_task(make_spec: Callable[..., VisionSpec], tmp_path: Path) -> Callable[..., VisionTask]:
    """``make_task(name, scale="smoke", seed=0, method="test", evaluate=False, **overrides)``."""

    def make(
        name: str,
        scale: str = "smoke",
        *,
        seed: int = 0,
        method: str = "test",
        evaluate: bool = False,
        **overrides: object,
    ) -> VisionTask:
        task = VisionTask(make_spec(name, scale, **overrides), seed=seed, method=method, folder=tmp_path)
        if evaluate:
            task.phase = "evaluate"
        return task

    return make
