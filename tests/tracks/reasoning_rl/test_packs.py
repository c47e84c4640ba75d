"""The shipped checkpoints are whole, the ones that the tasks ask for, and fit for a board."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from kdbench.cache import Cache
from kdbench.tracks.reasoning_rl import TRACK, gate
from tests.tracks.reasoning_rl.conftest import registry


@pytest.mark.parametrize("name", ["mixed", "digits"])
def test_tasks_find_their_checkpoints_and_their_gate_is_open(name: str, tmp_path: Path) -> None:
    assert TRACK.packs is not None
    spec, cache = registry().task(f"reasoning_rl/{name}", "cpu"), Cache(tmp_path, packs=[TRACK.packs])
    for kind, key, title in spec.teacher_needs():
        folder = cache.find(kind, key)
        assert folder is not None, f"{title}: remake with python -m kdbench.training.packs reasoning_rl {TRACK.packs}"
        assert Cache.damage(folder) is None
        if kind == "gap":
            assert gate.reasons(json.loads((folder / "gap.json").read_text()), spec.gate) == []
    assert not list(tmp_path.rglob("*.safetensors"))  # nothing was trained
