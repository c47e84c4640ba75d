"""What tracks ship is whole, is what their tasks ask for, and makes boards that say something."""

from __future__ import annotations

import pkgutil
from functools import lru_cache
from pathlib import Path

import pytest

from kdbench.cache import Cache
from kdbench.registry import Registry, discover

TASKS = [f"reasoning_rl/{name}" for name in ("mixed", "digits")]
TASKS += [f"dllm/{name}" for name in ("fixed", "edits", "random", "squares", "arith", "add")]


@lru_cache(maxsize=1)
def registry() -> Registry:
    return discover()


@pytest.mark.parametrize("name", TASKS)
def test_tasks_find_what_they_need_and_their_gates_are_open(name: str, tmp_path: Path) -> None:
    spec, track = registry().task(name, "cpu"), registry().tracks[name.split("/")[0]]
    assert track.packs is not None
    cache = Cache(tmp_path, packs=[track.packs])
    needs = spec.teacher_needs()
    assert needs
    for kind, key, title in needs:
        folder = cache.find(kind, key)
        assert folder is not None, f"{title}: remake with python -m kdbench.training.packs {track.name} {track.packs}"
        assert Cache.damage(folder) is None
    task = pkgutil.resolve_name(track.task)(spec, seed=0, method=f"{track.name}/probe", folder=tmp_path, cache=cache)
    task.phase = "evaluate"
    assert task.board_problems() == []
    assert not list(tmp_path.rglob("*.safetensors"))  # nothing was trained
