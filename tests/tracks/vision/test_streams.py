"""Data that do not fit into memory: decoded batch by batch as ImageNet is, from a folder in its format."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
import transformers
from PIL import Image

from kdbench.conformance.interrupting import run_in_two
from kdbench.errors import UsageError
from kdbench.job import Job
from kdbench.registry import discover
from kdbench.suite import load_suite
from kdbench.tracks.vision import data, streams
from kdbench.tracks.vision.spec import VisionSpec
from kdbench.tracks.vision.task import VisionTask
from kdbench.worker import run_job

from .conftest import CATALOG

CLASSES = ["ant", "bee", "cat"]
SUITE = Path(__file__).parents[3] / "suites" / "paper" / "vision.yaml"


def photograph(rng: np.random.Generator, label: int) -> Image.Image:
    """A picture of its own size, coloured by its class."""
    width, height = (int(side) for side in rng.integers(40, 80, size=2))
    pixels = rng.integers(0, 80, size=(height, width, 3), dtype=np.uint8)
    pixels[..., label] += 150
    return Image.fromarray(pixels)


@pytest.fixture(scope="module")
def imagenet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Parquet files with the columns and parts that ImageNet has on the hub."""
    root, rng = tmp_path_factory.mktemp("imagenet"), np.random.default_rng(0)
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=CLASSES)})
    for part, count in (("train", 60), ("validation", 21)):
        labels = [n % 3 for n in range(count)]
        columns = {"image": [photograph(rng, y) for y in labels], "label": labels}
        datasets.Dataset.from_dict(columns, features=features).to_parquet(str(root / f"{part}-00000-of-00001.parquet"))
    return root


@pytest.fixture(scope="module")
def networks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A residual network and a vision transformer of transformers, with the normalisation of ImageNet."""
    root = tmp_path_factory.mktemp("networks")
    torch.manual_seed(0)
    configs = {
        "resnet": transformers.ResNetConfig(
            embedding_size=8, hidden_sizes=[8, 16, 32], depths=[1, 1, 1], layer_type="basic", num_labels=3
        ),
        "vit": transformers.ViTConfig(
            hidden_size=16, num_hidden_layers=3, num_attention_heads=2, intermediate_size=32, image_size=32,
            patch_size=8, num_labels=3,
        ),
    }  # fmt: skip
    for name, config in configs.items():
        transformers.AutoModelForImageClassification.from_config(config).save_pretrained(root / name)
        text = '{"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}'
        (root / name / "preprocessor_config.json").write_text(text)
    return root


@pytest.fixture
def make(imagenet: Path, networks: Path, tmp_path: Path) -> Callable[..., VisionTask]:
    """The task ``imagenet`` at the scale ``paper``, with the local folders and a few steps."""

    def made(seed: int = 0, **overrides: object) -> VisionTask:
        return VisionTask(small(imagenet, networks, **overrides), seed=seed, method="test", folder=tmp_path)

    return made


def small(imagenet: Path, networks: Path, name: str = "imagenet", **overrides: object) -> VisionSpec:
    swapped = {
        "data": {"path": str(imagenet), "size": 32, "held": 0.2},
        "teacher": {"arch": f"hf:{networks / 'resnet'}"},
        "student": {"arch": f"hf:{networks / 'vit'}"},
        "recipe": {"batch_size": 8, "precision": "float32"},
        "limits": {"steps": 4},
    }
    return CATALOG.resolve(f"vision/{name}", "paper", swapped | overrides)


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Numbers of the pictures that were decoded."""
    numbers: list[int] = []
    inner = streams.Files.open

    def counted(self: streams.Files, number: int) -> Image.Image:
        numbers.append(number)
        return inner(self, number)

    monkeypatch.setattr(streams.Files, "open", counted)
    return numbers


# --- windows ----------------------------------------------------------------------------------------------------------


def test_evaluation_looks_at_the_centre() -> None:
    assert streams.central_box(256, 256) == (16, 16, 240, 240)
    assert streams.central_box(512, 256) == (144, 16, 368, 240)


@pytest.mark.parametrize("size", [(500, 375), (40, 400), (1, 1)])
def test_training_windows_lie_in_the_picture(size: tuple[int, int]) -> None:
    rng, (width, height) = np.random.default_rng(0), size
    boxes = np.array([streams.random_box(width, height, rng) for _ in range(300)])
    assert (boxes >= 0).all()
    assert (boxes[:, 2] <= width).all()
    assert (boxes[:, 3] <= height).all()
    if size == (500, 375):
        w, h = (boxes[:, 2:] - boxes[:, :2]).T
        share = w * h / (width * height)
        assert share.min() > 0.07
        assert share.max() > 0.8
        assert (w / h > 0.7).all()
        assert (w / h < 1.4).all()
        assert len(np.unique(boxes, axis=0)) > 290


def test_threads_do_not_change_what_is_read_or_its_order() -> None:
    batches = [np.arange(5), np.arange(5, 7), np.array([3]), *np.arange(40).reshape(8, 5)]

    def decode(number: int) -> np.ndarray:
        return np.full((3, 2, 2), number, np.uint8)

    plain = list(streams.read_ahead(iter(batches), decode, 0))
    threaded = list(streams.read_ahead(iter(batches), decode, 3))
    assert [part[:, 0, 0, 0].tolist() for part in threaded] == [numbers.tolist() for numbers in batches]
    assert all(np.array_equal(a, b) for a, b in zip(plain, threaded, strict=True))


def test_what_fails_in_a_thread_is_raised_and_nothing_goes_on() -> None:
    def decode(number: int) -> np.ndarray:
        if number == 2:
            raise OSError("truncated")
        return np.zeros((3, 2, 2), np.uint8)

    def endless() -> Iterator[np.ndarray]:
        while True:
            yield np.arange(4)

    with pytest.raises(OSError, match="truncated"):
        list(streams.read_ahead(endless(), decode, 2))


# --- splits -----------------------------------------------------------------------------------------------------------


def test_nothing_is_decoded_before_it_is_asked_for(make: Callable, opened: list[int]) -> None:
    task = make()
    train, val = task.split("train"), task.split("val")
    assert (len(train), len(val)) == (48, 12)
    assert len(task.split("labeled")) == 48
    assert opened == []
    batch = next(iter(task.train_loader()))
    assert batch.x.shape == (8, 3, 32, 32)
    assert len(opened) == 8
    assert batch.augmented
    assert len(train.take(torch.arange(5)).x.shape) == 4
    assert len(opened) == 8


def test_labels_belong_to_their_images(make: Callable) -> None:
    train = make().split("train")
    brightest = train.x[torch.arange(len(train))].mean((2, 3)).argmax(1)
    assert torch.equal(brightest, train.y)
    some = train.take(train.y == 1)
    assert torch.equal(some.x[:4].mean((2, 3)).argmax(1), torch.ones(4, dtype=torch.int64))
    parts = list(train.x.split(20))
    assert [len(part) for part in parts] == [20, 20, 8]
    assert torch.equal(torch.cat(parts), train.x[torch.arange(len(train))])
    assert train.x[train.y > 5].shape == (0, 3, 32, 32)


def test_what_a_tensor_has_and_a_stream_has_not_is_explained(make: Callable) -> None:
    with pytest.raises(AttributeError, match="decoded batch by batch"):
        make().split("train").x.mean()


def test_equal_seeds_see_equal_windows_and_every_epoch_has_its_own(make: Callable) -> None:
    one, same, other = (make(seed).train_loader() for seed in (0, 0, 1))
    first, second = list(one), list(one)
    assert sorted(torch.cat([batch.index for batch in first]).tolist()) == list(range(48))
    assert all(torch.equal(a.x, b.x) and torch.equal(a.y, b.y) for a, b in zip(first, same, strict=True))
    assert not torch.equal(first[0].index, next(iter(other)).index)

    def of(batches: list, number: int) -> torch.Tensor:
        return next(b.x[b.index == number] for b in batches if number in b.index)

    assert not torch.equal(of(first, 7), of(second, 7))


def test_a_loader_goes_on_where_it_was(make: Callable) -> None:
    task = make()
    whole = list(task.train_loader())
    part = task.train_loader()
    batches = iter(part)
    for _ in range(2):
        next(batches)
    state = part.state_dict()
    resumed = task.train_loader()
    resumed.load_state_dict(state)
    rest = list(resumed)
    assert len(rest) == len(whole) - 2
    assert all(torch.equal(a.x, b.x) for a, b in zip(rest, whole[2:], strict=True))


def test_stored_answers_are_those_of_the_centres(make: Callable) -> None:
    task = make(augment="none")
    batch = next(iter(task.train_loader()))
    assert not batch.augmented
    live = task.teacher()(batch.x)
    assert torch.allclose(task.teacher_logits(batch), live, atol=1e-5)


def test_changed_files_are_other_data(imagenet: Path, make: Callable, tmp_path: Path) -> None:
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(imagenet, copy)
    spec = make(data={"path": str(copy), "size": 32}).spec.data
    before = data.load(spec, make().cache).digest
    part = copy / "validation-00000-of-00001.parquet"
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=CLASSES)})
    rows = {"image": [Image.new("RGB", (50, 40))] * 21, "label": [n % 3 for n in range(21)]}
    datasets.Dataset.from_dict(rows, features=features).to_parquet(str(part))
    assert data.load(spec, make().cache).digest != before


# --- whole jobs -------------------------------------------------------------------------------------------------------


def job_of(method: str, spec: VisionSpec) -> Job:
    found = discover().method(method, "vision")
    return Job(
        method=found.key,
        method_digest=found.digest,
        params=found.canonical({}),
        task=spec.name,
        spec=spec.identity(),
        seed=0,
        track_version=1,
        method_file=found.path,
        module=found.module,
    )


def folder_in(root: Path, name: str) -> Path:
    folder = root / name
    folder.mkdir()
    return folder


@pytest.mark.parametrize(("task", "method"), [("imagenet", "kd"), ("imagenet-hetero", "ofa_kd")])
def test_a_method_trains_on_a_folder_in_the_format_of_imagenet(
    task: str, method: str, imagenet: Path, networks: Path, tmp_path: Path
) -> None:
    outcome = run_job(job_of(method, small(imagenet, networks, task)), folder_in(tmp_path, "job"))
    assert outcome.status == "ok", outcome.error
    assert 0 <= outcome.metrics["top1"] <= 1
    assert outcome.cost["teacher_queries"] >= 4 * 8  # windows are new each time: nothing is stored


def test_an_interrupted_job_goes_on_with_the_same_windows(imagenet: Path, networks: Path, tmp_path: Path) -> None:
    job = job_of("kd", small(imagenet, networks, limits={"steps": 9}))  # into the second epoch of six batches
    whole = run_job(job, folder_in(tmp_path, "whole"))
    resumed, after = run_in_two(job, folder_in(tmp_path, "resumed"), after=5)
    assert after == 5
    assert resumed.metrics == whole.metrics


def test_the_suite_resolves_to_the_standard_pairs() -> None:
    suite = load_suite(SUITE)
    registry = discover()
    pairs = set()
    for entry in suite.tasks:
        name, override = (entry, {}) if isinstance(entry, str) else (entry.task, entry.override)
        spec = registry.task(name, "paper", override)
        assert spec.problems() == []
        pairs.add((spec.teacher.arch, spec.student.arch))
        assert spec.limits["steps"] > 100_000
    assert {("resnet(32,4)", "resnet(8,4)"), ("wrn(40,2)", "wrn(16,2)"), ("vgg(13)", "vgg(8)")} <= pairs
    assert {("hf:microsoft/resnet-34", "hf:microsoft/resnet-18")} <= pairs
    assert len(pairs) == len(suite.tasks)


@pytest.mark.parametrize(
    ("name", "overrides", "message"),
    [
        ("imagenet", {"augment": "roll"}, "none or resized-flip"),
        ("imagenet", {"teacher": {"arch": "resnet(20)"}}, "not trained here"),
        ("cifar100", {"augment": "resized-flip"}, "data.stream"),
    ],
)
def test_what_streamed_data_cannot_be_is_explained(name: str, overrides: dict, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        CATALOG.resolve(f"vision/{name}", "paper", overrides)


def test_mirroring_is_refused_where_it_changes_the_class(make_spec: Callable) -> None:
    for name in ("shapetex", "digits-gap"):
        with pytest.raises(UsageError, match="other classes"):
            make_spec(name, augment="crop-flip")
    with pytest.raises(UsageError, match="source hf"):
        make_spec("shapetex", data={"stream": True})
