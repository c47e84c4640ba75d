"""Loaders go on where they were: the rest of the epoch, and the same epochs after it."""

from __future__ import annotations

from itertools import chain, islice

import numpy as np
import pytest
import torch

from kdbench.errors import JobError
from kdbench.training.loaders import Cycle, Epochs, Order, cycle
from kdbench.training.rollouts import MixedBatches
from kdbench.training.state import Stateful, Values


def order(seed: int = 0) -> Order:
    return Order(10, 4, torch.Generator().manual_seed(seed))


def lists(batches) -> list[list[int]]:
    return [batch.tolist() for batch in batches]


def test_an_epoch_has_every_row_once_and_each_has_an_order_of_its_own():
    rows = order()
    first, second = lists(rows), lists(rows)
    assert [len(batch) for batch in first] == [4, 4, 2]
    assert len(rows) == 3
    assert sorted(chain(*first)) == sorted(chain(*second)) == list(range(10))
    assert first != second
    permutation = torch.randperm(10, generator=torch.Generator().manual_seed(0))
    assert torch.equal(torch.tensor(list(chain(*first))), permutation), "drawn in one call"


@pytest.mark.parametrize("taken", range(8))
def test_an_order_goes_on_anywhere(taken):
    whole = lists(islice(cycle(order()), 9))
    before = order()
    batches = cycle(before)
    assert lists(islice(batches, taken)) == whole[:taken]
    after = order(seed=1)
    again = cycle(after)
    again.load_state_dict(batches.state_dict())
    after.generator.set_state(before.generator.get_state())
    assert lists(islice(again, 9 - taken)) == whole[taken:]


@pytest.mark.parametrize("taken", range(8))
def test_what_knows_nothing_of_its_position_is_iterated_again(taken):
    batches, again = cycle("abc"), cycle("abc")
    list(islice(batches, taken))
    again.load_state_dict(batches.state_dict())
    assert list(islice(again, 5)) == list(islice(cycle("abc"), taken + 5))[taken:]
    if taken % 3:
        assert again.epochs.last == "abc"[taken % 3 - 1]


def test_a_generator_is_brought_to_its_position_too():
    batches, again = cycle(iter(range(100))), cycle(iter(range(100)))
    list(islice(batches, 7))
    again.load_state_dict(batches.state_dict())
    assert next(again) == next(batches) == 7


def test_a_training_that_follows_starts_a_new_epoch():
    """A position is restored for the training that it was of; another one of the same loader starts afresh."""
    rows = order()
    batches = cycle(rows)
    next(batches)
    again = order()
    Cycle(again).load_state_dict(batches.state_dict())
    again.generator.set_state(rows.generator.get_state())
    assert lists(again) == lists(rows)


@pytest.mark.parametrize("taken", [0, 1, 3, 4, 7])
def test_a_mixture_goes_on_with_its_data_and_its_count(taken):
    def make():
        rng = np.random.default_rng(0)
        source = order()
        return MixedBatches(source, lambda n: f"own {n}", lambda step: 0.5, rng), source, rng

    whole = list(map(str, islice(cycle(make()[0]), 12)))
    mixture, source, rng = make()
    batches = cycle(mixture)
    list(islice(batches, taken))
    again, other_source, other_rng = make()
    continued = cycle(again)
    continued.load_state_dict(batches.state_dict())
    other_rng.bit_generator.state = rng.bit_generator.state
    other_source.generator.set_state(source.generator.get_state())
    assert again.step == taken
    assert list(map(str, islice(continued, 12 - taken))) == whole[taken:]


def test_a_loader_without_batches_is_an_error():
    for loader in ([], iter(()), Order(0, 4, torch.Generator())):
        with pytest.raises(JobError, match="gave no batch"):
            next(cycle(loader))
    with pytest.raises(JobError, match="gave no batch"):
        list(Epochs([]).epoch())


def test_values_are_kept_by_name():
    class Some(Values):
        kept = ("a",)

    seen, some = Values(n=1, kept=2), Some(a=1, b=2)
    assert isinstance(seen, Stateful)
    assert seen.state_dict() == {"n": 1, "kept": 2}
    assert some.state_dict() == {"a": 1}
    some.load_state_dict({"a": 5})
    assert (some.a, some.b) == (5, 2)
    with pytest.raises(AttributeError, match="no value 'm'"):
        _ = seen.m
