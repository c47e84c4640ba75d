"""Loaders beside the plain epochs of a split: pairs of loaders, and a part that changes; both go on from a position."""

import copy

import pytest
import torch

from kdbench.tracks.vision.batches import Batch, Pair, Pairs, Selected, Split


def split(n=10):
    index = torch.arange(n)
    return Split(index.float().view(n, 1, 1, 1).expand(n, 3, 2, 2), index % 3, index, {})


def batch(rows):
    return split().batch(torch.tensor(rows))


def test_a_pair_is_one_batch_whose_outputs_come_apart_again():
    pair = Pair(batch([0, 1]), batch([5, 6, 7]))
    assert len(pair) == 5
    labelled, others = pair.parts(pair.x.mean((1, 2, 3)))
    assert labelled.tolist() == [0, 1]
    assert others.tolist() == [5, 6, 7]


def test_pairs_repeat_each_side_at_its_own_pace():
    pairs = Pairs([batch([0]), batch([1])], [batch([7]), batch([8]), batch([9])])
    drawn = [(int(pair.labeled.index), int(pair.other.index)) for pair, _ in zip(pairs, range(6), strict=False)]
    assert drawn == [(0, 7), (1, 8), (0, 9), (1, 7), (0, 8), (1, 9)]


def selected(seed=0):
    return Selected(split(), 3, torch.Generator().manual_seed(seed), augment=False)


def rows(loader, count):
    return [next(loader).index.tolist() for _ in range(count)]


def test_a_part_is_seen_once_per_epoch_and_nothing_else():
    loader = selected()
    loader.choose(torch.tensor([1, 4, 6, 8]))
    first, second = ([row for part in rows(loader, 2) for row in part] for _ in range(2))
    assert sorted(first) == sorted(second) == [1, 4, 6, 8]
    loader.choose(torch.tensor([2]))
    assert rows(loader, 3) == [[2], [2], [2]]
    assert isinstance(next(loader), Batch)


@pytest.mark.parametrize("taken", [0, 1, 2, 3])
def test_a_changing_part_goes_on_from_its_position(taken):
    loader = selected()
    loader.choose(torch.tensor([1, 4, 6, 8]))
    rows(loader, taken)
    state, random = copy.deepcopy(loader.state_dict()), loader.generator.get_state()
    rest = rows(loader, 5)
    again = selected(seed=1)
    again.load_state_dict(state)
    again.generator.set_state(random)
    assert rows(again, 5) == rest


def test_pairs_go_on_from_their_position():
    def pairs():
        return Pairs(selected(), selected(seed=2))

    loader = pairs()
    next(loader)
    state = copy.deepcopy(loader.state_dict())
    rest = [next(loader).x for _ in range(2)]
    again = pairs()
    again.load_state_dict(state)
    for mine in rest:
        assert torch.equal(next(again).x, mine)
