"""Tasks of the track at the smallest scale, with one cache for a module's tests."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from kdbench.cache import Cache
from kdbench.registry import discover
from kdbench.tracks.dataset_distillation.task import DDTask


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Cache:
    return Cache(tmp_path_factory.mktemp("cache"))


@pytest.fixture
def make(shared: Cache, tmp_path: Any) -> Callable[..., DDTask]:
    def task(name: str = "digits", seed: int = 0, method: str = "m", **changes: Any) -> DDTask:
        spec = discover().task(f"dataset_distillation/{name}", "smoke").model_copy(update=changes)
        return DDTask(spec, seed=seed, method=method, folder=tmp_path, cache=shared)

    return task
