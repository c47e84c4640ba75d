"""Small tasks of the track ``llm``, sharing the session's cache."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest

from kdbench.cache import Cache
from kdbench.registry import Registry, discover
from kdbench.tracks.llm.spec import LLMSpec


@lru_cache(maxsize=1)
def registry() -> Registry:
    return discover()


@pytest.fixture
def make_spec() -> Callable[..., LLMSpec]:
    def make(name: str, scale: str = "smoke", **overrides: Any) -> LLMSpec:
        return registry().task(f"llm/{name}", scale, overrides or None)

    return make


@pytest.fixture
def make_task(make_spec, tmp_path: Path):
    from kdbench.tracks.llm.task import LLMTask

    def make(
        name: str, *, seed: int = 0, method: str = "llm/probe", cache: Cache | None = None, **overrides: Any
    ) -> LLMTask:
        spec = make_spec(name, **overrides)
        return LLMTask(spec, seed=seed, method=method, folder=tmp_path, cache=cache)

    return make
