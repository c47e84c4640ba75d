"""Data of the vision track: made once per specification, kept as arrays in the cache, never as pickles.

A :class:`Dataset` has the splits that a student's job needs; the teacher's training data are an entry of their own,
made only when a teacher is trained. Content is bytes and whole numbers alone (images of 8 bits, labels), and its
digest is taken of exactly that, so that one pinned digest holds on every machine. Nuisance variables are floats,
which may differ in the last bit between machines; they are metadata and stay outside of the digest.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from kdbench.cache import Cache
from kdbench.errors import UsageError
from kdbench.spec import digest
from kdbench.tracks.vision.data import derive, hf, pictures, real, shapetex
from kdbench.tracks.vision.data.items import Items
from kdbench.tracks.vision.derived import Mismatch, Target
from kdbench.tracks.vision.spec import SHAPETEX_CLASSES, DataSpec

__all__ = ["Arrays", "Dataset", "content_digest", "load", "make", "teacher_data"]

MEAN, STD = 0.45, 0.27
"""Normalisation of pixel values in [0, 1], the same for all channels and sources."""


@dataclass
class Arrays:
    """One split: images (N, 3, P, P) uint8, visible labels and true classes (N,) int64, metadata (N,) by name.

    Of streamed data ``x`` is (N,) int64: the number of each image in its files.
    """

    x: np.ndarray
    y: np.ndarray
    truth: np.ndarray
    meta: dict[str, np.ndarray]

    def __len__(self) -> int:
        return len(self.y)


class Dataset:
    """Splits of one data specification, read from its cache entry when they are asked for."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        about = json.loads((folder / "about.json").read_text())
        self.classes: int = about["classes"]
        self.sizes: dict[str, int] = about["sizes"]
        """Images by split."""
        self.digests: dict[str, str] = about["digests"]
        """Digest of the content by split."""
        self.digest: str = about["digest"]
        """Digest of all splits together."""
        self.names: list[str] = about["names"]

    def arrays(self, split: str) -> Arrays:
        """One split. Raises ``KeyError`` for one that the data set does not have."""
        if split not in self.sizes:
            raise KeyError(split)
        with np.load(self.folder / f"{split}.npz", allow_pickle=False) as file:
            meta = {name[5:]: file[name] for name in file.files if name.startswith("meta/")}
            return Arrays(file["x"], file["y"], file["truth"], meta)


def content_digest(arrays: Arrays) -> str:
    """16 hexadecimal digits of the SHA-256 of images, labels and true classes, shapes included."""
    sha = hashlib.sha256()
    for array in (arrays.x, arrays.y, arrays.truth):
        sha.update(f"{array.dtype.str}{array.shape}".encode())
        sha.update(np.ascontiguousarray(array).tobytes())
    return sha.hexdigest()[:16]


# --- making -----------------------------------------------------------------------------------------------------------


@dataclass
class _Source:
    """Where images come from: the splits it offers, and how to render them."""

    spec: DataSpec
    classes: int
    splits: dict[str, Items]
    folder: hf.Folder | None = None

    def render(self, items: Items) -> Arrays:
        if self.spec.stream:
            x, meta = items.index, {}
        elif self.folder is not None:
            x, meta = self.folder.render(items.index), {}
        elif self.spec.source == "shapetex":
            x, meta = shapetex.render(items, seed=self.spec.seed, size=self.spec.size, texture=self.spec.texture)
        elif self.spec.source == "pictures":
            x, meta = pictures.render(items.index, self.spec.seed, self.spec.size), {}
        else:
            x, meta = real.load(self.spec.source, self.spec.inner())[0][items.index], {}
            if "dx" in items.columns:
                x = real.on_canvas(x, self.spec.size, items.columns["dx"], items.columns["dy"])
        own = {name: values for name, values in items.columns.items() if name not in ("hue", "sigma")}
        return Arrays(x, items.y.astype(np.int64), items.truth.astype(np.int64), {**own, **meta, "number": items.index})


def _prefix(items: Items, count: int | None, what: str) -> Items:
    if count is not None and count > len(items):
        raise UsageError(f"data.{what} asks for {count} images, but there are {len(items)}")
    return items.take(np.arange(len(items) if count is None else count))


def _source(spec: DataSpec) -> _Source:
    if spec.source == "shapetex":
        splits = {
            "teacher": shapetex.items("teacher", spec.teacher or 0),
            "train": shapetex.items("teacher", spec.train or 0),
            "val": shapetex.items("val", spec.val or 0),
            "test": shapetex.items("test", spec.test or 0),
            **{f"ood_{k}": shapetex.items(f"ood{k}", spec.ood, domain=k) for k in range(1, 5) if spec.ood},
        }
        return _Source(spec, SHAPETEX_CLASSES, splits)
    folder = None
    if spec.source == "hf":
        folder, parts, classes = hf.open_folder(spec)
    elif spec.source == "pictures":
        parts, classes = pictures.items(spec.seed)
    else:
        labels = real.load(spec.source, spec.inner())[1]
        parts, classes = real.items(labels, spec.seed), int(labels.max()) + 1
    teacher = _prefix(parts["train"], spec.teacher, "teacher")
    splits = {
        "teacher": teacher,
        "rest": parts["train"].take(np.arange(len(teacher), len(parts["train"]))),
        "train": _prefix(teacher, spec.train, "train"),
        "val": _prefix(parts["val"], spec.val, "val"),
        "test": _prefix(parts["test"], spec.test, "test"),
    }
    return _Source(spec, classes, splits, folder)


def make(spec: DataSpec) -> tuple[dict[str, Arrays], int, list[str]]:
    """Every split of a student's job, the number of classes, and their names where the source has some.

    Raises ``UsageError`` where the source cannot give what the specification asks for.
    """
    source = _source(spec)
    splits = {name: items for name, items in source.splits.items() if name not in ("teacher", "rest")}
    classes = source.classes
    if spec.derive is not None:
        try:
            splits |= derive.DERIVATIONS[spec.derive.kind](spec, spec.derive, source.splits, classes)
        except ValueError as error:
            raise UsageError(f"data.derive ({spec.derive.kind}): {error}") from error
        if isinstance(spec.derive, Mismatch):
            classes = spec.derive.targets
    names = source.folder.names if source.folder is not None else pictures.NAMES if spec.source == "pictures" else []
    return {name: source.render(items) for name, items in splits.items()}, classes, names


def _write(folder: Path, splits: dict[str, Arrays], classes: int, names: list[str], files: Any = None) -> None:
    """``files``: what stands for the content of images that are not kept."""
    digests = {name: content_digest(arrays) for name, arrays in splits.items()}
    if files is not None:
        digests = {name: digest([content, files]) for name, content in digests.items()}
    for name, arrays in splits.items():
        meta = {f"meta/{column}": values for column, values in arrays.meta.items()}
        np.savez(folder / f"{name}.npz", x=arrays.x, y=arrays.y, truth=arrays.truth, **meta)
    about = {
        "classes": classes,
        "names": names,
        "sizes": {name: len(arrays) for name, arrays in splits.items()},
        "digests": digests,
        "digest": digest([classes, digests]),
    }
    (folder / "about.json").write_text(json.dumps(about, indent=1) + "\n")


def load(spec: DataSpec, cache: Cache) -> Dataset:
    """The data set of a specification, from the cache or made now.

    Raises ``UsageError`` where its content is not the one that the specification pins.
    """
    key: dict[str, Any] = {"what": "splits", **spec.recipe()}
    if spec.source == "hf":
        key["files"] = hf.fingerprint(spec)
    files = [spec.path, spec.config, spec.revision, key["files"]] if spec.stream else None
    dataset = Dataset(cache.get("data", key, lambda folder: _write(folder, *make(spec), files)))
    pin = spec.pin()
    if pin is not None and pin != dataset.digest:
        raise UsageError(
            f"the {spec.source} data have the digest {dataset.digest}, but the task pins {pin}",
            place="data.digest",
            hint="another version of the package or of the files? set data.digest to null to accept them",
        )
    return dataset


def teacher_data(spec: DataSpec, cache: Cache, target: Target = "label") -> Dataset:
    """Training data of a teacher (split ``train``) with the validation and test images of the same labels.

    ``target`` names the label function of a source of the ``related`` data set.
    """
    key = {"what": "teacher", **spec.teacher_recipe(target)}
    if spec.source == "hf":
        key["files"] = hf.fingerprint(spec)
    return Dataset(cache.get("data", key, lambda folder: _write(folder, *_make_teacher(spec, target))))


def _make_teacher(spec: DataSpec, target: Target) -> tuple[dict[str, Arrays], int, list[str]]:
    if target == "digits":
        digits = DataSpec(source="digits16", seed=spec.seed)
        source = _source(digits)
        return {"train": source.render(source.splits["teacher"])}, source.classes, []
    source = _source(spec)
    if target == "label":
        classes = spec.derive.targets if isinstance(spec.derive, Mismatch) else source.classes
        train = derive.teacher_items(spec, source.splits["teacher"], source.classes)
    else:
        train, classes = derive.source_items(spec, target, len(source.splits["teacher"]))
    return {"train": source.render(train)}, classes, []


def class_groups(data: Dataset) -> dict[str, np.ndarray]:
    """Classes of the head, the middle and the tail: thirds of the classes by their number of training images."""
    truth = data.arrays("train").truth
    order = np.argsort(-np.bincount(truth, minlength=data.classes), kind="stable")
    return dict(zip(("head", "mid", "tail"), np.array_split(order, 3), strict=True))
