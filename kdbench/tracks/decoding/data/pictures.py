"""Rows with pictures: prompts, batches and encoded splits that carry them along.

A picture is a tensor (3, H, W) of uint8. It travels with the row that it belongs to, so that whatever decodes or trains
needs to know nothing of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, overload

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from kdbench.errors import JobError
from kdbench.tracks.llm.data.encoding import Sequences, TextBatch


class Pictured(list[int]):
    """Ids of a prompt, and the picture (3, H, W) uint8 that belongs to its visual tokens; slices keep the picture."""

    def __init__(self, ids: Sequence[int], picture: Tensor) -> None:
        super().__init__(ids)
        self.picture = picture

    @overload  # type: ignore[override]
    def __getitem__(self, place: int) -> int: ...
    @overload
    def __getitem__(self, place: slice) -> Pictured: ...
    def __getitem__(self, place: Any) -> Any:
        found = super().__getitem__(place)
        return Pictured(found, self.picture) if isinstance(place, slice) else found


def pictures_of(rows: Sequence[Sequence[int]]) -> Tensor | None:
    """The pictures (B, 3, H, W) of prompts, where they have some."""
    found = [row.picture for row in rows if isinstance(row, Pictured)]
    return torch.stack(found) if found else None


def visual_mask(ids: Tensor, token: int, count: int) -> Tensor:
    """(B, L) bool: the places of a picture in ``ids`` (B, L), the first ``count`` of ``token`` in each row.

    What a model writes later is text, even where it is the same token.
    """
    held = ids == token
    return held & (held.cumsum(dim=1) <= count)


@dataclass
class SceneBatch(TextBatch):
    """A batch of rows with a picture each."""

    pictures: Tensor | None = None
    """(B, 3, H, W) uint8."""

    def to(self, device: torch.device | str) -> TextBatch:
        moved = super().to(device)
        return moved if self.pictures is None else replace(moved, pictures=self.pictures.to(device))

    def rows(self, which: Tensor) -> TextBatch:
        chosen = super().rows(which)
        return chosen if self.pictures is None else replace(chosen, pictures=self.pictures[which])


def with_pictures(batch: TextBatch, rows: Sequence[Sequence[int]]) -> TextBatch:
    """A batch with the pictures of the prompts that its rows begin with; as it is where they have none."""
    pictures = pictures_of(rows)
    if pictures is None:
        return batch
    return SceneBatch(**vars(batch), pictures=pictures.to(batch.input_ids.device))


@dataclass
class SceneSequences(Sequences):
    """Encoded rows with a picture each."""

    pictures: Tensor | None = None
    """(N, 3, H, W) uint8."""

    def batch(self, rows: Tensor, split: str = "train") -> TextBatch:
        assert self.pictures is not None
        return SceneBatch(**vars(super().batch(rows, split)), pictures=self.pictures[rows])

    def prompt(self, row: int, tokens: int) -> list[int]:
        assert self.pictures is not None
        return Pictured(super().prompt(row, tokens), self.pictures[row])

    def rows(self, which: Tensor) -> Sequences:
        assert self.pictures is not None
        return replace(self, **vars(super().rows(which)) | {"pictures": self.pictures[which]})

    def __add__(self, other: Sequences) -> Sequences:
        raise JobError("rows with pictures are not joined with other rows")

    def save(self, folder: Path, name: str) -> None:
        super().save(folder, name)
        assert self.pictures is not None
        save_file({"pictures": self.pictures.contiguous()}, folder / f"{name}-pictures.safetensors")

    @classmethod
    def read(cls, folder: Path, name: str) -> SceneSequences:
        pictures = load_file(folder / f"{name}-pictures.safetensors")["pictures"]
        return cls(**vars(Sequences.read(folder, name)), pictures=pictures)
