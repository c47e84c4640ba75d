"""Smoke tasks of the track."""

from __future__ import annotations

from functools import lru_cache

import pytest

from kdbench.registry import Registry, discover
from kdbench.tracks.reasoning_rl.task import ReasoningTask


@lru_cache(maxsize=1)
def registry() -> Registry:
    return discover()


@pytest.fixture
def make(tmp_path):
    """``make(name, seed=0, **overrides)``: a smoke task that a method of a test would receive."""

    def task(name="mixed", seed=0, **overrides):
        spec = registry().task(f"reasoning_rl/{name}", "smoke", overrides or None)
        return ReasoningTask(spec, seed=seed, method="reasoning_rl/probe", folder=tmp_path)

    return task
