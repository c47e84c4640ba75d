"""Images of a task: bytes from a source, normalised with mean and deviation of the real training images."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from kdbench.cache import Cache
from kdbench.errors import UsageError
from kdbench.tracks.dataset_distillation.data import shapes
from kdbench.tracks.dataset_distillation.data.specs import ImagesData

SPLITS = ("train", "val", "test")
Raw = dict[str, tuple[np.ndarray, np.ndarray]]
"""Images (N, C, H, W) uint8 and classes (N,) int64 by split."""


@dataclass
class Images:
    """Normalised images and their classes."""

    x: Tensor
    """(N, C, H, W) float32."""
    y: Tensor
    """(N,) int64."""

    def __len__(self) -> int:
        return len(self.y)

    def take(self, rows: Tensor) -> Images:
        """The images at some positions."""
        return Images(self.x[rows], self.y[rows])

    def to(self, device: torch.device) -> Images:
        return Images(self.x.to(device), self.y.to(device))


@dataclass
class Dataset:
    """All splits of a task, with what normalises them."""

    splits: dict[str, Images]
    classes: int
    mean: Tensor
    """(C, 1, 1) of the real training pixels in [0, 1]."""
    std: Tensor
    digest: str

    @property
    def shape(self) -> tuple[int, int, int]:
        c, h, w = self.splits["train"].x.shape[1:]
        return c, h, w

    @property
    def range(self) -> tuple[Tensor, Tensor]:
        """Normalised values (C, 1, 1) of black and of white: the least and the largest that a picture may have."""
        return (0 - self.mean) / self.std, (1 - self.mean) / self.std


def digits(spec: ImagesData) -> Raw:
    """The 1,797 digits of scikit-learn: 1,200 train, 297 val and 300 test, stratified by class; or the first of
    each."""
    from sklearn.model_selection import train_test_split

    from kdbench.tracks.diffusion.data.digits import glyphs

    ink, labels = glyphs()
    x, y = np.rint(ink.numpy() * 255).astype(np.uint8), labels.numpy()
    train, rest = train_test_split(np.arange(len(y)), train_size=1200, stratify=y, random_state=spec.seed)
    val, test = train_test_split(rest, train_size=297, stratify=y[rest], random_state=spec.seed)
    out: Raw = {}
    for name, rows in (("train", train), ("val", val), ("test", test)):
        count = getattr(spec, name)
        if count is not None and count > len(rows):
            raise UsageError(f"data.{name} asks for {count} digits, but there are {len(rows)}")
        out[name] = (x[rows[:count]], y[rows[:count]])
    return out


def generated(spec: ImagesData) -> Raw:
    """Images of :mod:`kdbench.tracks.dataset_distillation.data.shapes`."""
    counts = {"train": spec.train, "val": spec.val, "test": spec.test}
    return {name: shapes.images(name, count or 0, spec.seed) for name, count in counts.items()}


def loaded(spec: ImagesData, cache: Cache) -> Raw:
    """RGB images of the hub or of a local folder, as the vision track reads them."""
    from kdbench.tracks.vision import data as vision
    from kdbench.tracks.vision.spec import DataSpec

    fields = ("seed", "size", "train", "val", "test", "path", "config", "revision", "image", "label", "splits", "held")
    found = vision.load(DataSpec(source="hf", **{name: getattr(spec, name) for name in fields}), cache)
    arrays = {name: found.arrays(name) for name in SPLITS}
    return {name: (part.x, part.y) for name, part in arrays.items()}


def content_digest(raw: Raw) -> str:
    """16 hexadecimal digits of the SHA-256 of all images and classes, shapes included."""
    sha = hashlib.sha256()
    for name in SPLITS:
        for array in raw[name]:
            sha.update(f"{name}{array.dtype.str}{array.shape}".encode())
            sha.update(np.ascontiguousarray(array).tobytes())
    return sha.hexdigest()[:16]


def read(spec: ImagesData, cache: Cache) -> Raw:
    """The splits as bytes; generated ones are kept in the cache."""
    if spec.source == "digits":
        return digits(spec)
    if spec.source == "hf":
        return loaded(spec, cache)

    def make(folder: Path) -> None:
        raw = generated(spec)
        for name, (x, y) in raw.items():
            np.savez(folder / f"{name}.npz", x=x, y=y)
        (folder / "about.json").write_text(json.dumps({"digest": content_digest(raw)}) + "\n")

    folder = cache.get("data", {"track": "dataset_distillation", **spec.recipe()}, make)
    out: Raw = {}
    for name in SPLITS:
        with np.load(folder / f"{name}.npz", allow_pickle=False) as file:
            out[name] = (file["x"], file["y"])
    return out


def load(spec: ImagesData, cache: Cache) -> Dataset:
    """The data of a task, on the CPU.

    Raises ``UsageError`` where the content is not the one that the task pins, or a class has fewer than ``ipc`` images.
    """
    raw = read(spec, cache)
    found = content_digest(raw)
    pin = spec.pin()
    if pin is not None and pin != found:
        raise UsageError(
            f"the {spec.source} data have the digest {found}, but the task pins {pin}",
            place="data.digest",
            hint="another version of the package or of the files? set data.digest to null to accept them",
        )
    counts = np.bincount(raw["train"][1])
    if counts.min() < spec.ipc:
        raise UsageError(
            f"{spec.ipc} images per class are kept, but class {int(counts.argmin())} has {int(counts.min())} in all",
            place="data.ipc",
        )
    pixels = torch.from_numpy(raw["train"][0]).float() / 255
    mean = pixels.mean((0, 2, 3))[:, None, None]
    std = pixels.std((0, 2, 3))[:, None, None]
    splits = {
        name: Images((torch.from_numpy(x).float() / 255 - mean) / std, torch.from_numpy(y))
        for name, (x, y) in raw.items()
    }
    return Dataset(splits, len(counts), mean, std, found)
