"""The shipped teachers are whole, small, and the ones that the tasks ask for."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from kdbench.cache import Cache
from kdbench.tracks.vision import PACKS, teachers
from kdbench.tracks.vision.models import build

SHIPPED = [
    "shapetex",
    "shapetex-coarse",
    "shapetex-large-teacher",
    "shapetex-fewclass",
    "shapetex-mixup",
    "digits-gap",
    "digits-fewlabel",
    "digits-mixup",
]
SHIPPED += [
    "mnist5k",
    "hetero-rn-vit",
    "hetero-vit-rn",
    "hetero-mixer-rn",
    "hetero-digits-rn-vit",
    "active",
    "longtail",
]


def test_the_pack_is_whole_and_small() -> None:
    entries = sorted((PACKS / "teacher").iterdir())
    assert entries
    for folder in entries:
        assert Cache.damage(folder) is None
    assert sum(path.stat().st_size for path in PACKS.rglob("*") if path.is_file()) < 8 << 20


@pytest.mark.parametrize("name", SHIPPED)
@pytest.mark.parametrize("scale", ["quick", "cpu"])
def test_tasks_find_their_teachers(name: str, scale: str, make_spec: Callable, tmp_path: Path) -> None:
    cache = Cache(tmp_path, packs=[PACKS])
    needs = make_spec(name, scale).teacher_needs()
    assert needs
    for kind, key, title in needs:
        folder = cache.find(kind, key)
        assert folder is not None, f"{title}: remake with python -m kdbench.training.packs vision {PACKS}"
        assert json.loads((folder / "teacher.json").read_text())["recipe"] == key


def test_loaded_weights_are_those_that_were_trained(make_spec: Callable, tmp_path: Path) -> None:
    import torch

    spec = make_spec("shapetex-large-teacher", "cpu")
    cache = Cache(tmp_path, packs=[PACKS])
    for name, teacher in spec.all_teachers().items():
        model = teachers.load(spec, name, cache, torch.device("cpu"), 30)
        folder = cache.find("teacher", spec.teacher_recipe(name))
        assert folder is not None
        assert teachers.weights_digest(model) == json.loads((folder / "teacher.json").read_text())["weights"]
        assert type(model) is type(build(teacher.arch, 30))
    assert not list(tmp_path.rglob("*.safetensors"))  # nothing was trained


def test_teachers_are_far_above_chance_and_their_students(make_spec: Callable, tmp_path: Path) -> None:
    cache = Cache(tmp_path, packs=[PACKS])
    floor = {"shapetex": 0.85, "shapetex-coarse": 0.85, "hetero-vit-rn": 0.75, "hetero-mixer-rn": 0.75, "mnist5k": 0.95}
    for name, least in floor.items():
        folder = cache.find("teacher", make_spec(name, "cpu").teacher_recipe("default"))
        assert folder is not None
        assert json.loads((folder / "teacher.json").read_text())["scores"]["test"]["top1"] > least
