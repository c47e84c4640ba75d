"""Distances of layers, which of them a map keeps, and what they weigh."""

from __future__ import annotations

import pytest
import torch

from kdbench.errors import UsageError
from kdbench.training.layer_maps import LayerMap, SlotWeights, layer_distances


def values(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_distances_are_mean_squared_errors_with_the_right_gradients():
    student, teacher = values(5, 3, 6), values(5, 4, 6, seed=1)
    teacher[0, 0] = student[0, 0]  # at distance 0 the gradient is 0, not NaN
    by_hand = (student[:, :, None] - teacher[:, None]).square().mean(-1)
    student.requires_grad_()
    found = layer_distances(student, teacher)
    assert torch.allclose(found, by_hand, atol=1e-12)
    found.sum().backward()
    assert torch.allclose(student.grad, 2 * (4 * student.detach() - teacher.sum(1, keepdim=True)) / 6)
    assert layer_distances(student.bfloat16(), teacher.bfloat16()).dtype == torch.float32
    with pytest.raises(UsageError, match="6 wide and the teacher's 5"):
        layer_distances(student, teacher[..., :5])


@pytest.mark.parametrize(
    ("kind", "shape", "pairs"),
    [
        ("last", (3, 5), [(2, 4)]),
        ("skip", (2, 6), [(0, 2), (1, 5)]),
        ("skip", (4, 4), [(0, 0), (1, 1), (2, 2), (3, 3)]),
        ("skip", (4, 2), [(0, 0), (1, 0), (2, 1), (3, 1)]),
        ("all", (2, 2), [(0, 0), (0, 1), (1, 0), (1, 1)]),
    ],
)
def test_fixed_maps(kind, shape, pairs):
    chosen = LayerMap(kind)
    distances = values(7, *shape)
    assert chosen.pairs(*shape) == pairs
    assert chosen.slots(*shape) == len(pairs)
    assert torch.equal(chosen.kept(distances), torch.stack([distances[:, s, t] for s, t in pairs], -1))


def test_the_nearest_of_each_position_come_first_to_last():
    distances = values(7, 2, 5)
    chosen = LayerMap("nearest", 2)
    assert chosen.slots(2, 5) == 4
    assert torch.equal(chosen.kept(distances), distances.sort(-1).values[..., :2].flatten(1))
    assert torch.equal(distances.flatten(1).gather(1, chosen.chosen(distances)), chosen.kept(distances))
    everything = LayerMap("nearest", 9).kept(distances)
    assert torch.allclose(everything.sum(-1), distances.sum((-1, -2)))


def test_random_maps_draw_different_layers_for_each_position_and_each_once():
    distances, draw = values(400, 2, 5).abs(), torch.Generator().manual_seed(0)
    chosen = LayerMap("random", 2).chosen(distances, draw)
    assert (chosen[:, 0] != chosen[:, 1]).all()
    assert ((chosen[:, :2] < 5) & (chosen[:, 2:] >= 5)).all()
    counts = torch.bincount(chosen.flatten(), minlength=10)
    assert (counts > 100).all(), "160 expected of each"
    again = LayerMap("random", 2).chosen(distances, torch.Generator().manual_seed(0))
    assert torch.equal(chosen, again)
    with pytest.raises(ValueError, match="generator"):
        LayerMap("random").kept(distances)
    with pytest.raises(UsageError, match="each position"):
        LayerMap("random").pairs(2, 5)


def test_weights_of_slots():
    kept = values(7, 4).abs()
    for kind in ("fixed", "learned", "nonnegative"):
        slots = SlotWeights(4, kind).double()
        assert torch.allclose(slots(kept), kept.sum(-1))
        assert slots.raw.requires_grad == (kind != "fixed")
        with torch.no_grad():
            slots.raw[0] = -1.0
        first = 0.0 if kind == "nonnegative" else -1.0
        assert torch.allclose(slots(kept), kept[:, 1:].sum(-1) + first * kept[:, 0])
