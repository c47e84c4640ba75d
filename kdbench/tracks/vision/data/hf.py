"""Image data sets through ``datasets.load_dataset``: a name on the hub, or a local folder of images or Parquet files.

Images of data that fit into memory at the task's ``size`` are read once, brought to ``size`` x ``size`` RGB by Pillow's
antialiased bilinear filter and kept as bytes in the cache. Those of streamed data stay where they are: what is kept is
which image belongs where (see :mod:`kdbench.tracks.vision.streams`).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from kdbench.errors import UsageError, did_you_mean
from kdbench.tracks.vision.data.items import Items
from kdbench.tracks.vision.data.real import PARTS, in_turn, stratified

if TYPE_CHECKING:
    from kdbench.tracks.vision.spec import DataSpec

READ = 256
"""Images that are decoded at a time."""


def is_local(path: str) -> bool:
    """Whether ``path`` is a folder of this machine rather than a name on the hub."""
    return Path(path).expanduser().exists()


def fingerprint(spec: DataSpec) -> list[Any]:
    """What changes when the files of a local folder change: name, size and modification time of each."""
    if not is_local(spec.path):
        return []
    root = Path(spec.path).expanduser().resolve()
    files = sorted(path for path in root.rglob("*") if path.is_file())
    return [[str(path.relative_to(root)), path.stat().st_size, path.stat().st_mtime_ns] for path in files]


def load_parts(path: str, config: str | None, revision: str | None) -> dict[str, Any]:
    """Every part of a data set by its own name. Raises ``UsageError`` where it cannot be loaded."""
    import datasets

    place = f"data.path {path}"
    try:
        if is_local(path):
            root = Path(path).expanduser()
            if (root / "dataset_dict.json").exists() or (root / "dataset_info.json").exists():
                found = datasets.load_from_disk(str(root))
            else:
                found = datasets.load_dataset(str(root), config)
        else:
            found = datasets.load_dataset(path, config, revision=revision)
    except (OSError, ValueError, RuntimeError) as error:
        raise UsageError(f"the data set cannot be loaded: {error}", place=place) from error
    return dict(found) if isinstance(found, dict) else {"train": found}


@dataclass
class Folder:
    """Images of all parts behind one numbering, in the order of ``parts``."""

    parts: list[Any]
    image: str
    size: int
    names: list[str]
    """Names of the classes; empty where the data set has none."""

    def render(self, index: np.ndarray) -> np.ndarray:
        """Images (N, 3, size, size) uint8 of the given numbers."""
        from PIL import Image

        out = np.empty((len(index), 3, self.size, self.size), dtype=np.uint8)
        edges = np.cumsum([0, *(len(part) for part in self.parts)])
        for number, part in enumerate(self.parts):
            rows = np.flatnonzero((index >= edges[number]) & (index < edges[number + 1]))
            for start in range(0, len(rows), READ):
                some = rows[start : start + READ]
                for row, image in zip(some, part[(index[some] - edges[number]).tolist()][self.image], strict=True):
                    small = image.convert("RGB").resize((self.size, self.size), Image.Resampling.BILINEAR)
                    out[row] = np.asarray(small).transpose(2, 0, 1)
        return out


def open_folder(spec: DataSpec) -> tuple[Folder, dict[str, Items], int]:
    """The images, the parts train, val and test of them, and the number of classes."""
    import datasets

    found = load_parts(spec.path, spec.config, spec.revision)
    place = f"data.path {spec.path}"
    parts, labels, own = [], [], {}
    offset = 0
    names: list[str] = []
    for role, name in spec.splits.items():
        if name not in found:
            raise UsageError(
                f"the data set has no part {name!r}", place=place, hint=did_you_mean(name, list(found), label="parts")
            )
        part = found[name]
        for column in (spec.image, spec.label):
            if column not in part.column_names:
                hint = did_you_mean(column, part.column_names, label="columns")
                raise UsageError(f"the data set has no column {column!r}", place=place, hint=hint)
        feature = part.features[spec.label]
        if isinstance(feature, datasets.ClassLabel):
            names = list(feature.names)
        classes = np.asarray(part[spec.label])
        if classes.dtype.kind not in "iu" or (classes < 0).any():
            raise UsageError(f"column {spec.label!r} does not hold class numbers from 0 on", place=place)
        if not isinstance(part.features[spec.image], datasets.Image):
            part = part.cast_column(spec.image, datasets.Image())
        own[role] = offset + np.arange(len(part))
        offset += len(part)
        parts.append(part)
        labels.append(classes.astype(np.int64))
    if "train" not in own:
        raise UsageError("data.splits needs a part for train", place=place)
    truth = np.concatenate(labels)
    missing = [name for name in PARTS if name not in own]
    if missing:
        train = own["train"]
        held = [spec.held] * len(missing)
        shares = stratified(truth[train], spec.seed, (1 - sum(held), *held))
        own |= dict(zip(("train", *missing), (train[share] for share in shares), strict=True))
    count = len(names) or int(truth.max()) + 1
    items = {}
    for name in PARTS:
        rows = in_turn(truth, np.random.default_rng([spec.seed, PARTS.index(name)]).permutation(own[name]))
        items[name] = Items(rows, truth[rows], truth[rows])
    return Folder(parts, spec.image, spec.size, names), items, count
