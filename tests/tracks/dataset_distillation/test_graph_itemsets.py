"""Frequent sets: against all subsets that there are."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest

from kdbench.tracks.dataset_distillation.blocks.itemsets import TooManySets, closed_itemsets, frequent_itemsets

BOOK = [[1, 2, 5], [2, 4], [2, 3], [1, 2, 4], [1, 3], [2, 3], [1, 3], [1, 2, 3, 5], [1, 2, 3]]
"""The example of Han and Kamber, Data Mining, section 6.2."""


def by_counting(transactions, support):
    sets = [frozenset(items) for items in transactions]
    items = sorted(frozenset().union(*sets)) if sets else []
    found = {}
    for size in range(1, len(items) + 1):
        for chosen in combinations(items, size):
            count = sum(set(chosen) <= own for own in sets)
            if count >= support:
                found[chosen] = count
    return found


def closed_of(found):
    return {
        items: count
        for items, count in found.items()
        if not any(count == other and set(items) < set(larger) for larger, other in found.items())
    }


def test_the_example_of_the_book():
    found = frequent_itemsets(BOOK, 2)
    assert len(found) == 13
    assert found[(1, 2, 5)] == 2
    assert found[(1, 2)] == 4
    assert found == by_counting(BOOK, 2)


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("support", [1, 2, 5])
def test_no_set_is_missing_and_none_is_too_many(seed, support):
    rng = np.random.default_rng(seed)
    chance = rng.uniform(0.1, 0.9, 7)
    transactions = [np.flatnonzero(rng.random(7) < chance).tolist() for _ in range(int(rng.integers(1, 25)))]
    wanted = by_counting(transactions, support)
    assert frequent_itemsets(transactions, support) == wanted
    assert closed_itemsets(transactions, support) == closed_of(wanted)


def test_items_that_come_twice_count_once():
    assert frequent_itemsets([[1, 1], [1]], 2) == {(1,): 2}


def test_sets_without_transactions():
    assert frequent_itemsets([], 1) == {}
    assert closed_itemsets([[], []], 1) == {}


def test_closed_sets_are_few_where_items_come_together():
    transactions = [list(range(12))] * 3
    assert closed_itemsets(transactions, 2) == {tuple(range(12)): 3}
    assert len(frequent_itemsets(transactions, 2)) == 2**12 - 1


@pytest.mark.parametrize("find", [frequent_itemsets, closed_itemsets])
def test_mining_stops_at_the_limit(find):
    count = len(find(BOOK, 2))
    assert len(find(BOOK, 2, count)) == count
    with pytest.raises(TooManySets, match=f"more than {count - 1}"):
        find(BOOK, 2, count - 1)
    with pytest.raises(ValueError, match="at least 1"):
        find(BOOK, 0)
