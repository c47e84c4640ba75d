"""``shapetex``: procedural images with known ground truth, 6 shapes x 5 textures, five domains.

Class ``5 * shape + texture``. Every image is a function of (seed, index, shape, texture, domain): its random numbers
come from a counter-based generator whose counter is the index, so that any image can be made again by itself.
Everything is computed in float64 and rounded to 8 bits at the end, as in an image file. The rounding is what makes
the content the same on every machine: libraries differ in the last bit of a sine, which moves a value of 53 bits
across one of 256 borders practically never, while digests of unrounded floats would differ at once.
"""

from __future__ import annotations

import numpy as np

from kdbench.tracks.vision.data.items import Items
from kdbench.tracks.vision.spec import SHAPETEX_CLASSES

SHAPES = ("disk", "square", "triangle", "cross", "ring", "bar")
UNKNOWN_SHAPES = ("l_shape", "crescent", "two_dots")
"""Shapes of no class, numbered after the known ones."""
FULL, EMPTY = 9, 10
"""Shape numbers of images that are texture all over, and of images without any object."""
TEXTURES = ("hstripe", "vstripe", "checker", "dots", "gradient")
DOMAINS = ("D0", "D1 palette", "D2 tint", "D3 noise and blur", "D4 rotation")
FREQUENCY = {"default": (3.5, 4.8), "coarse": (1.8, 2.4)}
CHUNK = 512
"""Images that are rendered at a time, to bound memory."""
REGION = 1 << 24
"""Images of different purposes have indices in different regions, so that no two splits share an image by chance."""
REGIONS = (
    "teacher",
    "val",
    "test",
    "ood1",
    "ood2",
    "ood3",
    "ood4",
    "extra",
    "webly",
    "unlabeled",
    "domains",
    "sources",
)

DRAWS = 20
"""Uniform numbers per image, in the order of :func:`nuisances`; the noise follows them."""
SEXTANTS = np.array([[0, 1, 2], [1, 0, 2], [1, 2, 0], [2, 1, 0], [2, 0, 1], [0, 2, 1]])
"""Channels from the largest to the smallest in each sextant of hue, from red on."""


def items(region: str, count: int, *, domain: int = 0, offset: int = 0) -> Items:
    """``count`` images of a region with the classes in turn, so that every prefix is balanced."""
    index = REGIONS.index(region) * REGION + offset + np.arange(count, dtype=np.int64)
    label = np.arange(offset, offset + count, dtype=np.int64) % SHAPETEX_CLASSES
    return Items(index, label, label).having(
        shape=label // len(TEXTURES), texture=label % len(TEXTURES), domain=domain, hue=-1, sigma=np.nan
    )


def of_classes(region: str, labels: np.ndarray, *, domain: int = 0, offset: int = 0) -> Items:
    """One image of each given class, with consecutive indices of a region."""
    base = items(region, len(labels), domain=domain, offset=offset)
    labels = labels.astype(np.int64)
    return Items(base.index, labels, labels, base.columns).having(
        shape=labels // len(TEXTURES), texture=labels % len(TEXTURES)
    )


def _random(seed: int, index: np.ndarray, noise: int) -> tuple[np.ndarray, np.ndarray]:
    """Uniform numbers (N, DRAWS) and standard normal ones (N, noise) of each image."""
    uniform, normal = np.empty((len(index), DRAWS)), np.empty((len(index), noise))
    for row, number in enumerate(index):
        generator = np.random.Generator(np.random.Philox(key=[seed, 0], counter=[0, 0, 0, int(number)]))
        generator.random(out=uniform[row])
        if noise:
            generator.standard_normal(out=normal[row])
    return uniform, normal


def nuisances(
    uniform: np.ndarray, domain: np.ndarray, hue: np.ndarray, sigma: np.ndarray, texture: str
) -> dict[str, np.ndarray]:
    """Every nuisance variable of N images from their uniform numbers (N, DRAWS).

    ``hue`` fixes the sextant of the object's colour (-1: free), ``sigma`` the noise (NaN: the domain's).
    """

    def scaled(column: int, low: float, high: float) -> np.ndarray:
        return low + (high - low) * uniform[:, column]

    turn = np.where(domain == 4, np.pi, np.pi / 12)
    fg, bg = 0.35 + 0.65 * uniform[:, 11:14], 0.65 * uniform[:, 14:17]
    fixed = np.flatnonzero(hue >= 0)
    if len(fixed):
        # Ordering three independent uniform channels is conditioning on the sextant of hue.
        ordered = -np.sort(-fg[fixed], axis=1)
        fg[fixed[:, None], SEXTANTS[hue[fixed]]] = ordered
    shifted = (domain == 1)[:, None]
    pale = 0.35 + 0.65 * uniform[:, 14:17]
    bg = np.where(shifted, pale, bg)
    fg = np.where(shifted, np.clip(pale + np.where(uniform[:, 17:20] < 0.5, -0.35, 0.35), 0, 1), fg)
    tinted = (domain == 2)[:, None]
    fg = np.where(tinted, fg * [1, 0.4, 0.4], fg)
    bg = np.where(tinted, bg * [0.3, 0.3, 1], bg)
    own = np.choose(domain, [0.08, 0.08, 0.10, 0.20, 0.08])
    return {
        "cx": scaled(0, -0.2, 0.2),
        "cy": scaled(1, -0.2, 0.2),
        "radius": scaled(2, 0.5, 0.75),
        "angle": turn * (2 * uniform[:, 3] - 1),
        "frequency": scaled(4, *FREQUENCY[texture]),
        "phase1": scaled(5, 0, 2 * np.pi),
        "phase2": scaled(6, 0, 2 * np.pi),
        "phase3": scaled(7, 0, 2 * np.pi),
        "k1": scaled(8, -3, 3),
        "k2": scaled(9, -3, 3),
        "contrast": scaled(10, 0.35, 0.6),
        **{f"fg{k}": fg[:, k] for k in range(3)},
        **{f"bg{k}": bg[:, k] for k in range(3)},
        "noise": np.where(np.isnan(sigma), own, sigma),
    }


def masks(shape: np.ndarray, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Object masks (N, P, P) of shapes (N,) in object coordinates u, v (N, P, P), v downwards."""
    au, av, radius2 = np.abs(u), np.abs(v), u**2 + v**2
    largest = np.maximum(au, av)
    made = [
        radius2 < 1,
        largest < 0.85,
        (v > -0.7) & (v < np.minimum(0.9, 1 - 2 * au)),
        (np.minimum(au, av) < 0.33) & (largest < 1),
        (radius2 > 0.25) & (radius2 < 1),
        (au < 1) & (av < 0.4),
        (largest < 0.9) & ((u < -0.3) | (v > 0.3)),
        (radius2 < 1) & ((u - 0.5) ** 2 + v**2 > 0.6),
        (au - 0.55) ** 2 + v**2 < 0.16,
        np.ones_like(u, dtype=bool),
        np.zeros_like(u, dtype=bool),
    ]
    return np.choose(shape[:, None, None], made)


def textures(
    kind: np.ndarray, u: np.ndarray, v: np.ndarray, f: np.ndarray, p1: np.ndarray, p2: np.ndarray
) -> np.ndarray:
    """Texture values (N, P, P) in [-1, 1]; f, p1, p2 are (N, 1, 1)."""
    a, b = np.sin(np.pi * f * u + p1), np.sin(np.pi * f * v + p2)
    made = [
        b,
        a,
        0.9 * np.sign(a) * np.sign(b),
        np.where((a > 0.3) & (b > 0.3), 1.0, -1.0),
        np.clip(u, -1, 1),
    ]
    return np.choose(kind[:, None, None], made)


def _coordinates(meta: dict[str, np.ndarray], size: int) -> tuple[np.ndarray, ...]:
    """Pixel centres X, Y (1, P, P) in [-1, 1], Y downwards, and object coordinates u, v (N, P, P)."""
    centre = (2 * np.arange(size) + 1) / size - 1
    x, y = centre[None, None, :], centre[None, :, None]
    cx, cy, radius, angle = (meta[name][:, None, None] for name in ("cx", "cy", "radius", "angle"))
    cos, sin = np.cos(angle), np.sin(angle)
    u = (cos * (x - cx) + sin * (y - cy)) / radius
    v = (-sin * (x - cx) + cos * (y - cy)) / radius
    return x, y, u, v


def object_masks(meta: dict[str, np.ndarray], size: int) -> np.ndarray:
    """(N, P, P) boolean masks of the objects, from the metadata that :func:`render` returns."""
    _, _, u, v = _coordinates(meta, size)
    return masks(meta["shape"], u, v)


def _smear(image: np.ndarray) -> np.ndarray:
    """Mean of images (N, 3, P, P) and their shifts by one pixel down, right and left; border pixels are repeated."""
    padded = np.pad(image, ((0, 0), (0, 0), (1, 1), (1, 1)), mode="edge")
    down, right, left = padded[..., :-2, 1:-1], padded[..., 1:-1, :-2], padded[..., 1:-1, 2:]
    return (image + down + right + left) / 4


def render(rows: Items, *, seed: int, size: int, texture: str = "default") -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Images (N, 3, P, P) uint8 and their metadata: shape, texture, domain and every nuisance variable, each (N,)."""
    images = np.empty((len(rows), 3, size, size), dtype=np.uint8)
    meta: list[dict[str, np.ndarray]] = []
    for start in range(0, len(rows), CHUNK):
        part = rows.take(np.arange(start, min(start + CHUNK, len(rows))))
        uniform, normal = _random(seed, part.index, 3 * size * size)
        made = nuisances(uniform, part.columns["domain"], part.columns["hue"], part.columns["sigma"], texture)
        made |= {name: part.columns[name] for name in ("shape", "texture", "domain")}
        images[start : start + len(part)] = np.rint(255 * _compose(made, normal.reshape(len(part), 3, size, size)))
        meta.append(made)
    return images, {name: np.concatenate([made[name] for made in meta]) for name in meta[0]}


def _compose(meta: dict[str, np.ndarray], normal: np.ndarray) -> np.ndarray:
    """Images (N, 3, P, P) float64 in [0, 1] from metadata and standard normal noise of that shape."""
    x, y, u, v = _coordinates(meta, normal.shape[-1])
    f, p1, p2, p3, k1, k2, q = (
        meta[name][:, None, None] for name in ("frequency", "phase1", "phase2", "phase3", "k1", "k2", "contrast")
    )
    tex = textures(np.maximum(meta["texture"], 0), u, v, f, p1, p2)
    fg, bg = (np.stack([meta[f"{name}{k}"] for k in range(3)], axis=1)[..., None, None] for name in ("fg", "bg"))
    inside = fg * (1 - q + q * tex)[:, None]
    outside = bg + (0.12 * np.sin(3 * k1 * x + 3 * k2 * y + p3))[:, None]
    image = np.where(masks(meta["shape"], u, v)[:, None], inside, outside)
    image = image + meta["noise"][:, None, None, None] * normal
    blurred = meta["domain"] == 3
    if blurred.any():
        image[blurred] = _smear(image[blurred])
    return np.clip(image, 0, 1)


def hue_sextants(rows: Items, seed: int, texture: str = "default") -> np.ndarray:
    """(N,) sextant of the hue of the object's colour, 0 (red to yellow) to 5 (magenta to red)."""
    uniform, _ = _random(seed, rows.index, 0)
    meta = nuisances(uniform, rows.columns["domain"], rows.columns["hue"], rows.columns["sigma"], texture)
    order = np.argsort(-np.stack([meta[f"fg{k}"] for k in range(3)], axis=1), axis=1, kind="stable")
    return (order[:, None, :] == SEXTANTS[None]).all(axis=2).argmax(axis=1)


def quadrants(rows: Items, seed: int, texture: str = "default") -> np.ndarray:
    """(N,) quadrant 0-3 of the rotation angle of images of D4, counted from -180 degrees."""
    uniform, _ = _random(seed, rows.index, 0)
    angle = nuisances(uniform, rows.columns["domain"], rows.columns["hue"], rows.columns["sigma"], texture)["angle"]
    return np.minimum((angle + np.pi) // (np.pi / 2), 3).astype(np.int64)
