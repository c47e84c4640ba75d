"""Digits with attributes: real glyphs, rendered on 16x16 pixels as a prompt of six tokens says.

A glyph is magnified fourfold, its outline is cut at a level that makes strokes thin or bold, and it is turned, placed
and averaged down to the canvas, where it has light or dark ink on one of four backgrounds. Every attribute is an exact
function of the prompt, so that a classifier can tell whether a sample has what was asked for.

Concepts are glyphs that no training image has: digits turned by a quarter, mirrored, or composed of the upper half of
one and the lower half of another. Each has a word of its own in the slot of the class, which a teacher never saw.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from kdbench.errors import UsageError
from kdbench.tracks.diffusion.data.digits import CLASSES

SIZE = 16
SLOTS: dict[str, tuple[str, ...]] = {
    "class": tuple(str(digit) for digit in range(CLASSES)),
    "stroke": ("thin", "regular", "bold"),
    "rotation": ("turned left", "upright", "turned right"),
    "position": ("top left", "top right", "bottom left", "bottom right"),
    "ink": ("light ink", "dark ink"),
    "background": ("plain", "rows", "columns", "checker"),
}
"""Words of every slot of a prompt, in order; token 0 of a slot is null, token i its word i - 1."""
LEVELS = (0.62, 0.42, 0.22)
"""Ink at which the outline of a thin, a regular and a bold stroke is cut."""
SOFTNESS = 0.2
"""Difference of ink over which an outline goes from nothing to full ink."""
ANGLE = 25.0
"""Degrees of a turned glyph."""
SCALE = 0.625
"""Side of a glyph on the canvas, as a share of it."""
SHIFT = 0.25
"""How far a glyph is from the middle, as a share of half the canvas: two pixels."""
INK, RELIEF = 0.9, 0.35
"""Brightness of ink and background (plus and minus), and height of the background's pattern."""
FAMILIES = {"rotated": 1, "mirrored": 1, "composed": 2}
"""Families of concepts, and digits that one is made of."""


def vocabulary(concepts: int = 0) -> tuple[int, ...]:
    """Tokens of every slot, the null included; the words of concepts follow those of the classes."""
    extra = (concepts, 0, 0, 0, 0, 0)
    return tuple(1 + len(words) + more for words, more in zip(SLOTS.values(), extra, strict=True))


def describe(tokens: Tensor, concepts: tuple[str, ...] = ()) -> str:
    """A prompt (6,) in words; null tokens are left out.

    >>> describe(torch.tensor([4, 3, 0, 1, 2, 1]))
    '3, bold, top left, dark ink, plain'
    """
    words = [(*names, *(concepts if slot == "class" else ())) for slot, names in SLOTS.items()]
    return ", ".join(words[slot][int(token) - 1] for slot, token in enumerate(tokens) if token)


def random_prompts(classes: Tensor, generator: torch.Generator) -> Tensor:
    """Prompts (N, 6) int64 for classes (N,) counted from 0, every other attribute uniform."""
    rest = [
        torch.randint(1, len(words) + 1, classes.shape, generator=generator)
        for slot, words in SLOTS.items()
        if slot != "class"
    ]
    return torch.stack([classes + 1, *rest], dim=1)


def render(ink: Tensor, tokens: Tensor) -> Tensor:
    """Images (N, 1, 16, 16) float32 in [-1, 1] of glyphs (N, 1, 8, 8) in [0, 1]; tokens (N, 6), none of them null.

    The class in the first slot is what the glyph is, and changes nothing.
    """
    if (tokens[:, 1:] == 0).any():
        raise ValueError("a null attribute cannot be rendered")
    _, stroke, rotation, position, polarity, background = (tokens - 1).T
    large = F.interpolate(ink, scale_factor=4, mode="bicubic", align_corners=False)
    levels = torch.tensor(LEVELS)[stroke].view(-1, 1, 1, 1)
    outline = ((large - levels) / SOFTNESS + 0.5).clamp(0, 1)
    mask = F.avg_pool2d(_placed(outline, (rotation - 1) * ANGLE, position), 2)
    relief = _patterns()[background][:, None] * RELIEF
    sign = torch.where(polarity == 0, 1.0, -1.0).view(-1, 1, 1, 1)
    return sign * torch.lerp(relief - INK, torch.tensor(INK), mask)


def _placed(outline: Tensor, degrees: Tensor, position: Tensor) -> Tensor:
    """Glyphs (N, 1, H, W) turned clockwise and moved to a corner of a canvas (N, 1, 32, 32)."""
    turn = degrees.float() * (math.pi / 180)
    right, down = (position % 2) * 2.0 - 1, (position // 2) * 2.0 - 1
    cos, sin = turn.cos() / SCALE, turn.sin() / SCALE
    x, y = right * SHIFT, down * SHIFT
    # from places on the canvas to places in the glyph: the inverse of the turn, after the move is undone
    matrix = torch.stack([cos, sin, -(cos * x + sin * y), -sin, cos, sin * x - cos * y], dim=1).view(-1, 2, 3)
    side = 2 * SIZE
    grid = F.affine_grid(matrix, [len(outline), 1, side, side], align_corners=False)
    return F.grid_sample(outline, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


def _patterns() -> Tensor:
    """(4, 16, 16), 0 or 1: nothing, stripes, bars and a checkerboard of two pixels."""
    rows = (torch.arange(SIZE) // 2 % 2)[:, None].expand(SIZE, SIZE)
    return torch.stack([torch.zeros_like(rows), rows, rows.T, (rows + rows.T) % 2]).float()


# --- concepts ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Concept:
    """A glyph that training data do not have."""

    name: str
    """Family and digits: ``rotated-4``, ``mirrored-7``, ``composed-5-4`` (upper half of 5, lower half of 4)."""
    family: str
    digits: tuple[int, ...]

    @classmethod
    def of(cls, name: str) -> Concept:
        """From its name. Raises ``UsageError`` for an unknown family, a wrong number of digits or no digits."""
        family, *parts = name.split("-")
        wanted = "a concept is " + ", ".join(known + "-D" * digits for known, digits in FAMILIES.items())
        if family not in FAMILIES or len(parts) != FAMILIES[family]:
            raise UsageError(f"{wanted} (D a digit), not {name!r}")
        if not all(part in SLOTS["class"] for part in parts) or len(set(parts)) < len(parts):
            raise UsageError(f"{wanted} (D a digit, different ones), not {name!r}")
        return cls(name, family, tuple(map(int, parts)))

    def glyphs(self, ink: Tensor, labels: Tensor, count: int, seed: int) -> Tensor:
        """``count`` glyphs (count, 1, 8, 8) of the concept, made of glyphs (N, 1, 8, 8) with classes (N,)."""
        rng = np.random.default_rng(seed)
        chosen = []
        for digit in self.digits:
            rows = (labels == digit).nonzero()[:, 0]
            chosen.append(ink[rows[torch.from_numpy(rng.choice(len(rows), count, replace=count > len(rows)))]])
        if self.family == "rotated":
            return chosen[0].rot90(1, (-2, -1))
        if self.family == "mirrored":
            return chosen[0].flip(-1)
        half = ink.shape[-2] // 2
        return torch.cat([chosen[0][..., :half, :], chosen[1][..., half:, :]], dim=-2)
