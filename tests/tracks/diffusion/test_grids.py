"""Pictures have every image where it belongs."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from kdbench.tracks.diffusion.evaluate.grids import GAP, INK, PAPER, PATH, TILE, by_group, save, scatter, tiles, way


def pixels(picture):
    return np.asarray(picture).astype(int)


def test_images_stand_in_rows_with_their_brightness():
    values = torch.tensor([-1.0, 0.0, 1.0, 5.0, torch.nan])
    picture = pixels(tiles(values.view(5, 1, 1, 1).expand(5, 1, 2, 2), columns=3, scale=3))
    assert picture.shape == (2 * (6 + GAP) + GAP, 3 * (6 + GAP) + GAP)
    places = [(GAP + row * (6 + GAP), GAP + column * (6 + GAP)) for row in range(2) for column in range(3)]
    for (top, left), shade in zip(places, (0, 128, 255, 255, 128), strict=False):
        assert set(picture[top : top + 6, left : left + 6].flatten()) == {shade}
    assert set(picture[places[5][0] :, places[5][1] :].flatten()) == {PAPER}
    assert set(picture[:GAP].flatten()) == {PAPER}


def test_colours_stay_colours_and_other_shapes_are_refused():
    red = torch.tensor([1.0, -1.0, -1.0]).view(1, 3, 1, 1).expand(1, 3, 4, 4)
    assert pixels(tiles(red, 1))[GAP, GAP].tolist() == [255, 0, 0]
    with pytest.raises(ValueError, match="channels"):
        tiles(torch.zeros(2, 2, 4, 4), 1)


def test_groups_have_so_many_images_each_in_order():
    images = torch.arange(7.0).view(7, 1, 1, 1)
    chosen = by_group(images, torch.tensor([2, 1, 2, 1, 2, 3, 1]), each=2)
    assert chosen.flatten().tolist() == [1, 3, 0, 2]
    assert len(by_group(images, torch.arange(7), each=2)) == 0


def test_a_way_has_a_row_a_sample_and_its_first_and_last_state():
    states = [torch.full((3, 1, 1, 1), value) for value in torch.linspace(0, 1, 11).tolist()]
    states[0] = torch.tensor([-20.0, 0.0, 20.0]).view(3, 1, 1, 1)
    picture = pixels(way(states, count=3, columns=5, scale=1))
    assert picture.shape == (3 * (1 + GAP) + GAP, 5 * (1 + GAP) + GAP)
    rows = picture[GAP :: 1 + GAP, GAP :: 1 + GAP]
    assert rows[:, 0].tolist() == [0, 128, 255]
    assert rows[:, -1].tolist() == [255, 255, 255]
    assert (np.diff(rows[1]) > 0).all()
    assert way(states[-1:], count=2, scale=1).size[0] == 1 + 2 * GAP


def test_points_are_where_x_and_y_say_on_a_ground_that_is_darkest_at_the_mode():
    density = torch.zeros(8, 8)
    density[7, 0] = 1.0  # the top left corner: the last row is the highest y
    points = torch.tensor([[1.0, 1.0], [50.0, 0.0], [torch.nan, 0.0]])
    picture = pixels(scatter(points, extent=2.0, density=density, side=80))
    assert tuple(picture[20, 60]) == INK
    assert (picture == INK).all(2).sum() < 20
    assert picture[0, 0, 0] < 160
    assert tuple(picture[79, 79]) == (PAPER,) * 3


def test_paths_are_drawn_from_the_first_state_to_the_last():
    paths = [torch.tensor([[-1.0, 0.0]]), torch.tensor([[1.0, 0.0]])]
    picture = pixels(scatter(paths[-1], extent=2.0, paths=paths, side=80))
    assert tuple(picture[40, 40]) == PATH
    assert tuple(picture[40, 60]) == INK
    assert tuple(picture[40, 10]) == (PAPER,) * 3


def test_a_picture_is_written_with_its_caption(tmp_path):
    picture = tiles(torch.zeros(1, 1, 4, 4), 1, caption="One image")
    save(picture, tmp_path / "a.png")
    assert (tmp_path / "a.txt").read_text() == "One image\n"
    save(picture, tmp_path / "b.png", "Another")
    assert (tmp_path / "b.txt").read_text() == "Another\n"
    save(tiles(torch.zeros(1, 1, 4, 4), 1), tmp_path / "c.png")
    assert not (tmp_path / "c.txt").exists()
    with Image.open(tmp_path / "c.png") as read:
        assert read.size == (TILE + 2 * GAP,) * 2
