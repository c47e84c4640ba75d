"""The generator draws what its formulas say, and any image can be made again by itself."""

from __future__ import annotations

import numpy as np
import pytest

from kdbench.tracks.vision.data import shapetex
from kdbench.tracks.vision.data.items import Items

C = 30


def reference(meta: dict[str, float], normal: np.ndarray, size: int) -> np.ndarray:
    """One image (3, P, P) in [0, 1], pixel by pixel, straight from the definition of the data set."""
    image = np.empty((3, size, size))
    cos, sin = np.cos(meta["angle"]), np.sin(meta["angle"])
    for row in range(size):
        for column in range(size):
            x, y = (2 * column + 1) / size - 1, (2 * row + 1) / size - 1
            u = (cos * (x - meta["cx"]) + sin * (y - meta["cy"])) / meta["radius"]
            v = (-sin * (x - meta["cx"]) + cos * (y - meta["cy"])) / meta["radius"]
            a = np.sin(np.pi * meta["frequency"] * u + meta["phase1"])
            b = np.sin(np.pi * meta["frequency"] * v + meta["phase2"])
            inside = {
                0: u * u + v * v < 1,
                1: max(abs(u), abs(v)) < 0.85,
                2: -0.7 < v < min(0.9, 1 - 2 * abs(u)),
                3: min(abs(u), abs(v)) < 0.33 and max(abs(u), abs(v)) < 1,
                4: 0.5 < np.hypot(u, v) < 1,
                5: abs(u) < 1 and abs(v) < 0.4,
            }[int(meta["shape"])]
            tex = {
                0: b,
                1: a,
                2: 0.9 * np.sign(a) * np.sign(b),
                3: 1 if a > 0.3 and b > 0.3 else -1,
                4: min(max(u, -1), 1),
            }[int(meta["texture"])]
            wave = 0.12 * np.sin(3 * meta["k1"] * x + 3 * meta["k2"] * y + meta["phase3"])
            for k in range(3):
                q = meta["contrast"]
                image[k, row, column] = meta[f"fg{k}"] * (1 - q + q * tex) if inside else meta[f"bg{k}"] + wave
    image += meta["noise"] * normal
    if meta["domain"] == 3:
        wide = np.pad(image, ((0, 0), (1, 1), (1, 1)), mode="edge")
        image = (image + wide[:, :-2, 1:-1] + wide[:, 1:-1, :-2] + wide[:, 1:-1, 2:]) / 4
    return image.clip(0, 1)


@pytest.mark.parametrize("domain", range(5))
def test_images_follow_the_definition(domain: int) -> None:
    rows = shapetex.items("test", C, domain=domain)
    images, meta = shapetex.render(rows, seed=3, size=12)
    _, normal = shapetex._random(3, rows.index, 3 * 12 * 12)
    for n in range(C):
        one = {name: float(values[n]) for name, values in meta.items()}
        expected = reference(one, normal[n].reshape(3, 12, 12), 12)
        assert np.abs(images[n] / 255 - expected).max() <= 0.5 / 255 + 1e-9


@pytest.mark.parametrize("texture", ["default", "coarse"])
def test_nuisances_have_their_ranges(texture: str) -> None:
    rows = shapetex.items("test", 3000)
    _, meta = shapetex.render(rows, seed=0, size=8, texture=texture)
    low, high = {"default": (3.5, 4.8), "coarse": (1.8, 2.4)}[texture]
    ranges = {
        "cx": (-0.2, 0.2), "cy": (-0.2, 0.2), "radius": (0.5, 0.75), "angle": (-np.pi / 12, np.pi / 12),
        "frequency": (low, high), "k1": (-3, 3), "k2": (-3, 3), "contrast": (0.35, 0.6), "phase1": (0, 2 * np.pi),
        "fg0": (0.35, 1), "fg1": (0.35, 1), "fg2": (0.35, 1), "bg0": (0, 0.65), "bg1": (0, 0.65), "bg2": (0, 0.65),
    }  # fmt: skip
    for name, (least, most) in ranges.items():
        values = meta[name]
        assert values.min() >= least
        assert values.max() <= most
        # Uniform: mean and spread within five standard errors.
        width = most - least
        assert abs(values.mean() - (least + most) / 2) < 5 * width / np.sqrt(12 * 3000)
        assert abs(values.std() - width / np.sqrt(12)) < 0.03 * width
    assert (meta["noise"] == 0.08).all()


def test_domains_shift_what_they_say() -> None:
    metas = [shapetex.render(shapetex.items("test", 600, domain=k), seed=0, size=8)[1] for k in range(5)]
    palette = metas[1]
    for k in range(3):
        assert palette[f"bg{k}"].min() >= 0.35
        gap = palette[f"fg{k}"] - palette[f"bg{k}"]
        clipped = np.isclose(palette[f"fg{k}"], 1)
        assert np.allclose(np.abs(gap[~clipped]), 0.35)
        assert (gap > 0).any()
        assert (gap < 0).any()
    tint, plain = metas[2], metas[0]
    factors = {"fg0": 1, "fg1": 0.4, "fg2": 0.4, "bg0": 0.3, "bg1": 0.3, "bg2": 1}
    for name, factor in factors.items():
        assert np.allclose(tint[name], factor * plain[name])
    assert [meta["noise"][0] for meta in metas] == [0.08, 0.08, 0.10, 0.20, 0.08]
    assert np.abs(metas[4]["angle"]).max() > 0.95 * np.pi
    assert np.abs(metas[3]["angle"]).max() <= np.pi / 12


def test_an_image_can_be_made_again_by_itself() -> None:
    rows = shapetex.items("ood3", 700, domain=3)  # more than a chunk
    images, meta = shapetex.render(rows, seed=5, size=8)
    for n in (0, 511, 512, 699):
        again, same = shapetex.render(rows.take(np.array([n])), seed=5, size=8)
        assert (again[0] == images[n]).all()
        assert all(same[name][0] == values[n] for name, values in meta.items())
    other, _ = shapetex.render(rows.take(np.array([0])), seed=6, size=8)
    assert (other[0] != images[0]).any()


def test_regions_share_no_image() -> None:
    counts = {region: shapetex.items(region, 6000).index for region in shapetex.REGIONS}
    together = np.concatenate(list(counts.values()))
    assert len(np.unique(together)) == len(together)


def test_every_prefix_is_balanced() -> None:
    rows = shapetex.items("teacher", 2000)
    for size in (30, 500, 2000):
        count = np.bincount(rows.y[:size], minlength=C)
        assert count.max() - count.min() <= 1
    assert (rows.y == 5 * rows.columns["shape"] + rows.columns["texture"]).all()


def test_hue_sextants_order_the_channels() -> None:
    rows = shapetex.items("sources", 600)
    sextant = shapetex.hue_sextants(rows, seed=1)
    _, meta = shapetex.render(rows, seed=1, size=8)
    fg = np.stack([meta[f"fg{k}"] for k in range(3)], axis=1)
    import colorsys

    hue = np.array([colorsys.rgb_to_hsv(*colour)[0] for colour in fg])
    assert (sextant == np.floor(hue * 6)).all()
    assert set(sextant) == set(range(6))


def test_fixed_hue_and_noise_hold() -> None:
    for hue in range(6):
        rows = shapetex.items("domains", 90).having(hue=hue, sigma=0.12)
        assert (shapetex.hue_sextants(rows, seed=2) == hue).all()
        assert (shapetex.render(rows, seed=2, size=8)[1]["noise"] == 0.12).all()


def test_quadrants_follow_the_angle() -> None:
    rows = shapetex.items("sources", 600, domain=4)
    angle = shapetex.render(rows, seed=1, size=8)[1]["angle"]
    expected = np.digitize(np.degrees(angle), [-90, 0, 90])
    assert (shapetex.quadrants(rows, seed=1) == expected).all()


def test_masks_match_the_images() -> None:
    """Inside the mask the image changes with the object's colour alone, outside with the background's."""
    rows = shapetex.items("test", C)
    _, meta = shapetex.render(rows, seed=0, size=16)
    meta["contrast"] = np.full(C, 0.3)  # no texture makes the object black
    silent = np.zeros((C, 3, 16, 16))
    plain = shapetex._compose(meta, silent)
    recoloured = shapetex._compose({**meta, **{f"fg{k}": meta[f"fg{k}"] * 0.5 for k in range(3)}}, silent)
    changed = (np.abs(plain - recoloured) > 1e-12).any(axis=1)
    mask = shapetex.object_masks(meta, 16)
    assert (changed == mask).all()


def test_blank_and_full_images() -> None:
    rows = shapetex.items("webly", 2).having(shape=np.array([shapetex.FULL, shapetex.EMPTY]))
    meta = shapetex.render(rows, seed=0, size=8)[1]
    mask = shapetex.object_masks(meta, 8)
    assert mask[0].all()
    assert not mask[1].any()


def test_unknown_shapes_differ_from_the_known() -> None:
    u, v = np.meshgrid(np.linspace(-1, 1, 33), np.linspace(-1, 1, 33))
    numbers = np.arange(9)
    made = shapetex.masks(numbers, np.repeat(u[None], 9, 0), np.repeat(v[None], 9, 0))
    for unknown in made[6:]:
        assert 0.1 < unknown.mean() < 0.8
        for known in made[:6]:
            assert (unknown & known).sum() / (unknown | known).sum() < 0.8  # intersection over union


def test_items_take_and_hide() -> None:
    rows = Items(np.arange(4), np.arange(4), np.arange(4), {"domain": np.arange(4)})
    part = rows.take(np.array([2, 0]))
    assert part.columns["domain"].tolist() == [2, 0]
    assert part.hidden().y.tolist() == [-1, -1]
    assert part.hidden().truth.tolist() == [2, 0]
