"""Images of data sets that do not fit into memory: decoded from their files batch by batch, some batches ahead.

The protocol is that of ImageNet training since He et al. (CVPR 2016). Evaluation: the shorter side is brought to 8/7
of the size (256 for 224), the centre is cut out. Training: a window of 8 to 100 % of the area, its aspect ratio between
3/4 and 4/3 (Szegedy et al., CVPR 2015), brought to the size, mirrored or not. The epoch's seed and the image's number
decide about the window, not the order in which threads finish: equal seeds give equal batches.
"""

from __future__ import annotations

import io
import math
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from kdbench.tracks.vision.batches import Batch, Split, normalised

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

    from kdbench.tracks.vision.data.hf import Folder

AHEAD = 4
"""Batches that are decoded before they are asked for."""
THREADS = 16
"""That decode at most, where the device is no CPU; on a CPU a job has one thread, which decodes, too."""
BORDER = 8 / 7
"""Shorter side over size, before the centre is cut out."""
AREA, RATIO = (0.08, 1.0), (3 / 4, 4 / 3)
"""Of training windows: share of the area, width over height."""
TRIES = 10


def central_box(width: int, height: int) -> tuple[float, float, float, float]:
    """Left, upper, right and lower edge of the square that evaluation looks at."""
    side = min(width, height) / BORDER
    x, y = (width - side) / 2, (height - side) / 2
    return x, y, x + side, y + side


def random_box(width: int, height: int, rng: np.random.Generator) -> tuple[float, float, float, float]:
    """As :func:`central_box`, of a training window; the whole picture's centre where ten draws do not fit into it."""
    for _ in range(TRIES):
        area = width * height * rng.uniform(*AREA)
        ratio = math.exp(rng.uniform(*(math.log(edge) for edge in RATIO)))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            x, y = int(rng.integers(0, width - w + 1)), int(rng.integers(0, height - h + 1))
            return x, y, x + w, y + h
    w, h = min(width, round(height * RATIO[1])), min(height, round(width / RATIO[0]))
    x, y = (width - w) / 2, (height - h) / 2
    return x, y, x + w, y + h


class Files:
    """Encoded pictures of a data set behind one numbering, without their being decoded."""

    def __init__(self, folder: Folder) -> None:
        import datasets

        self.size = folder.size
        self._image = folder.image
        self._parts = [part.cast_column(folder.image, datasets.Image(decode=False)) for part in folder.parts]
        self._edges = np.cumsum([0, *(len(part) for part in self._parts)])

    def open(self, number: int) -> Picture:
        """A picture in RGB, as large as it is."""
        from PIL import Image

        part = int(np.searchsorted(self._edges, number, side="right")) - 1
        found = self._parts[part][int(number - self._edges[part])][self._image]
        with Image.open(found["path"] if found["bytes"] is None else io.BytesIO(found["bytes"])) as file:
            return file.convert("RGB")

    def centre(self, number: int) -> np.ndarray:
        """(3, size, size) uint8, as evaluation sees it."""
        picture = self.open(number)
        return self._cut(picture, central_box(*picture.size))

    def window(self, number: int, *, seed: int) -> np.ndarray:
        """(3, size, size) uint8, as training sees it; the seed and the number decide the window."""
        picture, rng = self.open(number), np.random.default_rng([seed, number])
        pixels = self._cut(picture, random_box(*picture.size, rng))
        return pixels[:, :, ::-1] if rng.random() < 0.5 else pixels

    def _cut(self, picture: Picture, box: tuple[float, float, float, float]) -> np.ndarray:
        from PIL import Image

        small = picture.resize((self.size, self.size), Image.Resampling.BILINEAR, box=box)
        return np.asarray(small).transpose(2, 0, 1)


def read_ahead(
    batches: Iterator[np.ndarray], decode: Callable[[int], np.ndarray], threads: int
) -> Iterator[np.ndarray]:
    """Pictures (B, 3, P, P) uint8 of each batch of numbers, in order; with threads, ``AHEAD`` batches in advance."""
    if not threads:
        for numbers in batches:
            yield np.stack([decode(int(number)) for number in numbers])
        return
    pool = ThreadPoolExecutor(threads, thread_name_prefix="decode")
    waiting: deque[list[Any]] = deque()
    try:
        for numbers in batches:
            waiting.append([pool.submit(decode, int(number)) for number in numbers])
            if len(waiting) > AHEAD:
                yield np.stack([future.result() for future in waiting.popleft()])
        while waiting:
            yield np.stack([future.result() for future in waiting.popleft()])
    finally:
        pool.shutdown(cancel_futures=True)


class Stream:
    """What takes the place of the tensor (N, 3, P, P) of a split: indexing decodes, nothing is kept."""

    def __init__(self, files: Files, numbers: np.ndarray, device: torch.device) -> None:
        self.files, self.numbers, self.device = files, numbers, device
        self.shape = torch.Size((len(numbers), 3, files.size, files.size))
        self.dtype = torch.float32

    def __len__(self) -> int:
        return len(self.numbers)

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(
            f"the images of this task are decoded batch by batch and have no {name!r}: take batches of a loader, "
            "parts of .split(size), or x[rows]"
        )

    @property
    def threads(self) -> int:
        from kdbench.schedule.machine import cores

        return 0 if self.device.type == "cpu" else min(THREADS, cores())

    def _rows(self, rows: Any) -> np.ndarray:
        return self.numbers[rows.cpu().numpy() if isinstance(rows, Tensor) else rows]

    def __getitem__(self, rows: Tensor | slice) -> Tensor:
        """(n, 3, P, P) float32, normalised, of positions, of a mask or of a range."""
        numbers = self._rows(rows)
        if not len(numbers):
            return torch.empty((0, *self.shape[1:]), device=self.device)
        return self._tensor(next(read_ahead(iter([numbers]), self.files.centre, self.threads)))

    def take(self, rows: Tensor) -> Stream:
        """The images at positions or of a mask, still to be decoded."""
        return Stream(self.files, self._rows(rows), self.device)

    def split(self, size: int) -> Iterator[Tensor]:
        """All images in order, ``size`` at a time."""
        return self.each(iter(np.split(self.numbers, range(size, len(self), size))), self.files.centre)

    def each(self, batches: Iterator[np.ndarray], decode: Callable[[int], np.ndarray]) -> Iterator[Tensor]:
        """Tensors of batches of numbers."""
        return map(self._tensor, read_ahead(batches, decode, self.threads))

    def _tensor(self, pixels: np.ndarray) -> Tensor:
        return normalised(torch.from_numpy(pixels).to(self.device))


@dataclass
class _Epoch:
    """One pass over a split: the order of its rows, the seed of its windows, and the batches that are taken."""

    rows: Tensor
    seed: int
    taken: int = 0


class StreamBatches:
    """As :class:`kdbench.tracks.vision.batches.Batches`, of a split whose images are decoded batch by batch."""

    def __init__(self, split: Split, size: int, generator: torch.Generator, *, augment: bool) -> None:
        self.split, self.size, self.generator, self.augment = split, size, generator, augment
        self._latest: _Epoch | None = None
        self._resumed: _Epoch | None = None

    def __len__(self) -> int:
        """Batches per epoch."""
        return -(-len(self.split) // self.size)

    def __iter__(self) -> Iterator[Batch]:
        epoch, self._resumed = self._resumed, None
        if epoch is None:
            rows = torch.randperm(len(self.split), generator=self.generator)
            epoch = _Epoch(rows, int(torch.randint(2**62, (), generator=self.generator)))
        self._latest = epoch
        return _batches(self.split, self.size, epoch, self.augment)

    def state_dict(self) -> dict[str, Any]:
        """Where the latest epoch is; the state of ``generator`` is not part of it."""
        return {} if self._latest is None else dict(vars(self._latest))

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The next iteration goes on from there."""
        self._resumed = _Epoch(state["rows"].cpu(), state["seed"], state["taken"]) if state else None


def _batches(split: Split, size: int, epoch: _Epoch, augment: bool) -> Iterator[Batch]:
    stream: Stream = split.x
    decode = partial(stream.files.window, seed=epoch.seed) if augment else stream.files.centre
    parts = epoch.rows.split(size)[epoch.taken :]
    images = stream.each((stream.numbers[rows.numpy()] for rows in parts), decode)
    for rows, x in zip(parts, images, strict=True):
        epoch.taken += 1
        here = rows.to(split.y.device)
        yield Batch(x, split.y[here], split.index[here], augmented=augment)
