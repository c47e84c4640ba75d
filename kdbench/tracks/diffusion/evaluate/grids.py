"""Pictures for people: grids of samples, the way from noise to a sample, and points in the plane.

Drawn with Pillow. :func:`save` writes one with its caption, where the page of the method finds both.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

if TYPE_CHECKING:
    from kdbench.task import Task

TILE = 32
"""Pixels of a side of an image in a grid, about."""
GAP = 2
"""Pixels between the images of a grid."""
PAPER = 255
INK = (30, 60, 140)
PATH = (200, 80, 40)


def save(picture: Image.Image, path: Path, caption: str = "") -> None:
    """Write a picture, and its caption into the ``.txt`` of the same name; default: that of ``picture.info``."""
    picture.save(path)
    text = caption or str(picture.info.get("caption", ""))
    if text:
        path.with_suffix(".txt").write_text(text + "\n", encoding="utf-8")


def keep(task: Task, pictures: Mapping[str, Image.Image]) -> None:
    """Write pictures by file name among the artifacts of a job."""
    for name, picture in pictures.items():
        save(picture, task.artifact(name))


def tiles(images: Tensor, columns: int, scale: int | None = None, caption: str = "") -> Image.Image:
    """Images (N, C, H, W) in [-1, 1], C 1 or 3, from left to right in rows of ``columns``.

    ``scale`` times as large; without it so that they have about :data:`TILE` pixels a side.
    """
    if images.ndim != 4 or images.shape[1] not in (1, 3):
        raise ValueError(f"a grid is made of images with one or three channels, not of {tuple(images.shape)}")
    count, channels, height, width = images.shape
    scale = max(TILE // height, 1) if scale is None else scale
    rows = -(-count // columns)
    bytes_ = ((images.detach().float().nan_to_num().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).cpu().numpy()
    step_y, step_x = height * scale + GAP, width * scale + GAP
    canvas = np.full((rows * step_y + GAP, columns * step_x + GAP, channels), PAPER, dtype=np.uint8)
    for number, image in enumerate(bytes_):
        top, left = GAP + number // columns * step_y, GAP + number % columns * step_x
        large = image.transpose(1, 2, 0).repeat(scale, 0).repeat(scale, 1)
        canvas[top : top + height * scale, left : left + width * scale] = large
    return _captioned(Image.fromarray(canvas[..., 0] if channels == 1 else canvas), caption)


def by_group(images: Tensor, groups: Tensor, each: int = 8) -> Tensor:
    """The first ``each`` images of every group (N,) int64, groups in order; those of fewer images are left out."""
    chosen = [rows[:each] for group in groups.unique() if len(rows := (groups == group).nonzero()[:, 0]) >= each]
    if not chosen:
        return images[:0]
    return images[torch.cat(chosen).to(images.device)]


def way(
    states: Sequence[Tensor], count: int = 8, columns: int = 9, scale: int | None = None, caption: str = ""
) -> Image.Image:
    """States (B, C, H, W) of a trajectory from the prior to the samples: a row for each of the first ``count``.

    Of more than ``columns`` states evenly spaced ones are shown, the first and the last among them. A state has its
    own grey scale where it goes beyond [-1, 1], as noisy ones do.
    """
    chosen = [states[int(place)] for place in np.linspace(0, len(states) - 1, min(columns, len(states))).round()]
    shown = [state[:count].float().cpu() for state in chosen]
    scaled = [state / state.abs().amax().clamp(min=1) for state in shown]
    images = torch.stack(scaled, dim=1).flatten(0, 1)
    return tiles(images, len(chosen), scale, caption)


def scatter(
    points: Tensor,
    *,
    extent: float,
    density: Tensor | None = None,
    paths: Sequence[Tensor] = (),
    side: int = 400,
    caption: str = "",
) -> Image.Image:
    """Points (N, 2) in the square [-extent, extent]^2, x to the right and y up; those beyond it are left out.

    ``density`` (M, M), rows from the bottom up, is the grey ground. ``paths``: states (B, 2) of a trajectory in order,
    joined by lines.
    """
    ground = Image.new("RGB", (side, side), (PAPER, PAPER, PAPER))
    if density is not None:
        values = density.detach().float().cpu().numpy()[::-1]
        dark = 255 - 110 * values / max(float(values.max()), 1e-12)
        ground = Image.fromarray(dark.round().astype(np.uint8)).resize((side, side), Image.Resampling.BILINEAR)
        ground = ground.convert("RGB")
    draw = ImageDraw.Draw(ground)

    def place(rows: Tensor) -> np.ndarray:
        xy = rows.detach().double().cpu().numpy()
        return np.stack([(xy[:, 0] + extent) / (2 * extent), (extent - xy[:, 1]) / (2 * extent)], axis=1) * side

    if len(paths) > 1:
        for line in np.stack([place(state) for state in paths], axis=1):
            if np.isfinite(line).all():
                draw.line([tuple(point) for point in np.clip(line, -side, 2 * side)], fill=PATH, width=1)
    placed = place(points)
    inside = np.isfinite(placed).all(1) & (placed >= 0).all(1) & (placed < side).all(1)
    for x, y in placed[inside]:
        draw.ellipse((x - 1, y - 1, x + 1, y + 1), fill=INK)
    return _captioned(ground, caption)


def _captioned(picture: Image.Image, caption: str) -> Image.Image:
    if caption:
        picture.info["caption"] = caption
    return picture
