"""Deterministic effects on grey images: what an editor is asked for, with the exact result.

Each takes and gives images (N, 1, H, W) in [-1, 1], ink is 1; squares alone can be turned.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from kdbench.errors import UsageError, did_you_mean


def _ink(x: Tensor) -> Tensor:
    return (x + 1) / 2


def _dilated(x: Tensor, reach: int = 1) -> Tensor:
    return F.max_pool2d(x, 2 * reach + 1, stride=1, padding=reach)


def _eroded(x: Tensor) -> Tensor:
    return -_dilated(-x)


def _blurred(x: Tensor) -> Tensor:
    """Gaussian of one pixel's width, edges repeated."""
    offsets = torch.arange(-2, 3, dtype=x.dtype, device=x.device)
    kernel = torch.exp(-offsets.square() / 2)
    kernel = kernel / kernel.sum()
    padded = F.pad(x, (2, 2, 2, 2), mode="replicate")
    return F.conv2d(F.conv2d(padded, kernel.view(1, 1, 1, 5)), kernel.view(1, 1, 5, 1))


def _checker(x: Tensor) -> Tensor:
    """Ink has a checkerboard of two pixels."""
    rows = torch.arange(x.shape[-2], device=x.device)[:, None] // 2
    columns = torch.arange(x.shape[-1], device=x.device)[None] // 2
    return _ink(x) * torch.where((rows + columns) % 2 == 0, 1.0, 0.3) * 2 - 1


def _stripes(x: Tensor) -> Tensor:
    """Ink has bars of one pixel."""
    columns = torch.arange(x.shape[-1], device=x.device) % 2
    return _ink(x) * torch.where(columns == 0, 1.0, 0.4) * 2 - 1


def _gradient(x: Tensor) -> Tensor:
    """The background grows brighter from left to right."""
    ramp = torch.linspace(0, 0.6, x.shape[-1], dtype=x.dtype, device=x.device)
    return torch.maximum(_ink(x), ramp) * 2 - 1


def _quantized(x: Tensor) -> Tensor:
    """Three levels of grey."""
    return (_ink(x) * 2).round() - 1


def _halo(x: Tensor) -> Tensor:
    """A faint ring around the ink, with a gap."""
    ring = _dilated(x, 2) - _dilated(x, 1)
    return torch.maximum(x, ring * 0.6 - 1)


def _sheared(x: Tensor) -> Tensor:
    """The top moves right, the bottom left."""
    matrix = torch.tensor([[1.0, 0.35, 0.0], [0.0, 1.0, 0.0]], dtype=x.dtype, device=x.device)
    grid = F.affine_grid(matrix.expand(len(x), 2, 3), list(x.shape), align_corners=False)
    return F.grid_sample(_ink(x), grid, padding_mode="zeros", align_corners=False) * 2 - 1


def _shadow(x: Tensor) -> Tensor:
    """A faint copy, one eighth of the side down and right."""
    step = max(x.shape[-1] // 8, 1)
    moved = F.pad(_ink(x), (step, 0, step, 0))[..., : x.shape[-2], : x.shape[-1]]
    return torch.maximum(_ink(x), 0.5 * moved) * 2 - 1


EFFECTS: dict[str, Callable[[Tensor], Tensor]] = {
    "keep": torch.clone,
    "dilate": _dilated,
    "erode": _eroded,
    "blur": _blurred,
    "edge": lambda x: _dilated(x) - _eroded(x) - 1,
    "invert": torch.neg,
    "checker": _checker,
    "stripes": _stripes,
    "gradient": _gradient,
    "mirror": lambda x: x.flip(-1),
    "flip": lambda x: x.flip(-2),
    "rotate": lambda x: x.rot90(1, (-2, -1)),
    "quantize": _quantized,
    "halo": _halo,
    "shear": _sheared,
    "shadow": _shadow,
}
"""Effects by name; ``keep`` leaves an image as it is."""


def apply(name: str, x: Tensor) -> Tensor:
    """One effect on images (N, 1, H, W). Raises ``UsageError`` for a name that there is not."""
    if name not in EFFECTS:
        raise UsageError(f"there is no effect {name!r}; {did_you_mean(name, sorted(EFFECTS), label='effects')}")
    return EFFECTS[name](x)


def apply_each(names: Sequence[str], which: Tensor, x: Tensor) -> Tensor:
    """To each image (N, 1, H, W) the effect ``names[which]``, ``which`` (N,) int64 in [0, len(names))."""
    made = torch.empty_like(x)
    for number, name in enumerate(names):
        rows = which == number
        if rows.any():
            made[rows] = apply(name, x[rows])
    return made
