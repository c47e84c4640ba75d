"""Mixtures of groups: what they draw, how often, and where they go on."""

from __future__ import annotations

from collections import Counter
from itertools import islice

import pytest
import torch

from kdbench.training.mixtures import Mixture

GROUPS = [torch.arange(0, 5), torch.arange(5, 8), torch.arange(8, 40)]


def mixture(weights=None, size=10, seed=0):
    return Mixture(GROUPS, size, torch.Generator().manual_seed(seed), weights)


def test_groups_are_drawn_by_their_weights_whatever_their_size():
    made = mixture([1, 6, 3])
    rows = torch.cat(list(islice(made, 400)))
    shares = [float(torch.isin(rows, group).float().mean()) for group in GROUPS]
    assert shares == pytest.approx([0.1, 0.6, 0.3], abs=0.04)
    assert made.drawn == [int(torch.isin(rows, group).sum()) for group in GROUPS]


def test_every_row_of_a_group_comes_once_before_any_comes_again():
    rows = torch.cat(list(islice(mixture([1, 0, 0]), 2))).tolist()
    passes = [rows[start : start + 5] for start in range(0, 20, 5)]
    assert all(sorted(each) == [0, 1, 2, 3, 4] for each in passes)
    assert len({tuple(each) for each in passes}) > 1


def test_new_weights_hold_from_the_next_rows_on_and_the_order_within_a_group_goes_on():
    made = mixture([1, 0, 0], size=3)
    first = next(made).tolist()
    made.reweigh([0, 2, 0])
    assert set(next(made).tolist()) == {5, 6, 7}
    made.reweigh([4, 0, 0])
    assert sorted(first + next(made).tolist()[:2]) == [0, 1, 2, 3, 4]
    assert made.weights.tolist() == [1, 0, 0]


def test_it_goes_on_where_its_state_was_taken():
    made = mixture([1, 1, 2])
    next(made)
    made.reweigh([3, 1, 1])
    next(made)
    state, generator = made.state_dict(), made.generator.get_state()
    wanted = [rows.tolist() for rows in islice(made, 5)]
    other = mixture(seed=7)
    other.load_state_dict(state)
    other.generator.set_state(generator)
    assert [rows.tolist() for rows in islice(other, 5)] == wanted
    assert other.drawn == made.drawn
    assert torch.equal(other.weights, made.weights)


def test_weights_default_to_equal_ones():
    assert mixture().weights.tolist() == pytest.approx([1 / 3] * 3)
    assert Counter(torch.isin(torch.cat(list(islice(mixture(), 300))), GROUPS[1]).tolist())[True] > 800


@pytest.mark.parametrize("weights", [[1, 1], [1, 1, -1], [0, 0, 0], [1, 1, float("nan")], [1, 1, float("inf")]])
def test_weights_that_make_no_sense_are_refused(weights):
    with pytest.raises(ValueError, match="weight"):
        mixture(weights)


def test_groups_without_rows_are_refused():
    with pytest.raises(ValueError, match="without rows"):
        Mixture([torch.arange(3), torch.arange(0)], 2, torch.Generator())
