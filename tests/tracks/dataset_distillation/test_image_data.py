"""Images: splits that do not overlap, bytes that are pinned, colours that say nothing."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from kdbench.cache import Cache
from kdbench.errors import UsageError
from kdbench.registry import discover
from kdbench.spec import digest
from kdbench.tracks.dataset_distillation.data import shapes
from kdbench.tracks.dataset_distillation.data.images import content_digest, load, read
from kdbench.tracks.dataset_distillation.data.specs import ImagesData


def test_digits_are_split_as_the_protocol_says(tmp_path):
    raw = read(ImagesData(source="digits", size=8), Cache(tmp_path))
    assert {name: len(y) for name, (_, y) in raw.items()} == {"train": 1200, "val": 297, "test": 300}
    for _, y in raw.values():
        counts = np.bincount(y)
        assert counts.max() - counts.min() <= 0.07 * len(y), "stratified"
    other = read(ImagesData(source="digits", size=8, seed=1), Cache(tmp_path))
    assert not np.array_equal(raw["test"][0], other["test"][0])


def test_normalised_images_lie_in_the_range(tmp_path):
    found = load(ImagesData(source="digits", size=8), Cache(tmp_path))
    x, (low, high) = found.splits["train"].x, found.range
    assert float(x.mean()) == pytest.approx(0, abs=1e-5)
    assert float(x.std()) == pytest.approx(1, abs=1e-3)
    assert bool((x >= low - 1e-6).all())
    assert bool((x <= high + 1e-6).all())
    assert found.shape == (1, 8, 8)


def test_every_shape_is_told_by_its_form_alone():
    x, y = shapes.images("train", 400, 0)
    assert x.shape == (400, 3, 16, 16)
    assert np.bincount(y).tolist() == [40] * 10
    means = np.stack([x[y == label].mean((0, 2, 3)) for label in range(10)])
    assert means.std(0).max() < 12, "the mean colour of a class is grey"
    nearest = np.stack([x[y == label].mean(0).ravel() for label in range(10)])
    distance = ((x.reshape(400, -1)[:, None] - nearest) ** 2).sum(-1)
    assert (distance.argmin(1) == y).mean() < 0.45, "mean images do not tell classes apart, not even those of these"


def test_shapes_are_different_forms():
    side = np.linspace(-1.2, 1.2, 41)
    v, u = np.meshgrid(side, side, indexing="ij")
    masks = [shapes.inside(shape, u, v) for shape in range(len(shapes.SHAPES))]
    for i, one in enumerate(masks):
        assert 0.03 < one.mean() < 0.7
        for other in masks[:i]:
            assert (one ^ other).sum() > 0.15 * min(one.sum(), other.sum())


def test_splits_of_shapes_have_their_own_images():
    parts = [{image.tobytes() for image in shapes.images(name, 60, 0)[0]} for name in ("train", "val", "test")]
    assert not parts[0] & parts[1] | parts[0] & parts[2] | parts[1] & parts[2]
    again = shapes.images("train", 60, 0)[0]
    assert {image.tobytes() for image in again} == parts[0]


@pytest.mark.parametrize("name", ["digits", "shapes"])
def test_content_is_pinned(name, tmp_path):
    data = discover().task(f"dataset_distillation/{name}", "cpu").data
    assert data.pin() is not None
    if name == "digits":
        assert content_digest(read(data, Cache(tmp_path))) == data.pin()
    wrong = data.model_copy(update={"digest": f"{digest(data.recipe())}:{'0' * 16}"})
    if name == "digits":
        with pytest.raises(UsageError, match="the task pins 0000"):
            load(wrong, Cache(tmp_path))
    assert data.model_copy(update={"seed": 5}).pin() is None, "a pin of other data does not apply"


def test_a_budget_larger_than_a_class_is_refused(tmp_path):
    with pytest.raises(UsageError, match="30 images per class are kept, but class"):
        load(ImagesData(source="digits", size=8, train=200, ipc=30), Cache(tmp_path))
    with pytest.raises(UsageError, match="asks for 5000 digits"):
        load(ImagesData(source="digits", size=8, train=5000), Cache(tmp_path))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"source": "digits", "size": 16}, "images of 8 pixels"),
        ({"source": "hf"}, "needs path"),
        ({"source": "shapes16"}, "say how many"),
        ({"source": "digits", "size": 8, "digest": "x"}, "16 hexadecimal"),
    ],
)
def test_wrong_fields_are_named(fields, message):
    with pytest.raises(ValidationError, match=message):
        ImagesData(**fields)


def test_seeds_of_generators_are_their_own():
    assert torch.equal(
        torch.from_numpy(shapes.images("val", 20, 3)[1]), torch.from_numpy(shapes.images("val", 20, 3)[1])
    )
    assert not np.array_equal(shapes.images("val", 20, 3)[0], shapes.images("val", 20, 4)[0])
