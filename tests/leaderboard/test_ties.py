"""Compact letter displays: what they say is what the tests say."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from kdbench.leaderboard.statistics import Pairs, separations
from kdbench.leaderboard.ties import letters, tie_groups


def pairs(separated: np.ndarray) -> Pairs:
    """Pairs of which the later method is worse wherever the matrix (M, M) says that the two are separated."""
    worse = np.triu(separated | separated.T, 1)
    return Pairs(better=worse.T, worse=worse, tested=np.ones_like(worse))


MATRICES = st.integers(1, 9).flatmap(lambda m: hnp.arrays(bool, (m, m)))


@given(MATRICES)
@settings(deadline=None, max_examples=200)
def test_two_methods_share_a_letter_exactly_where_no_test_separates_them(separated: np.ndarray) -> None:
    given_pairs = pairs(separated)
    m = len(separated)
    groups = tie_groups(given_pairs)
    sets = [set(group) for group in groups]
    for i in range(m):
        assert any(i in group for group in sets)
        for j in range(i + 1, m):
            assert any({i, j} <= group for group in sets) == (not given_pairs.separated[i, j])
    for group in sets:
        outside = set(range(m)) - group
        assert not any(all(not given_pairs.separated[i, j] for j in group) for i in outside), "a larger group is there"
    for index, group in enumerate(sets):
        others = [other for k, other in enumerate(sets) if k != index]
        tied = [{i, j} for i in group for j in group]
        assert not all(any(pair <= other for other in others) for pair in tied), "the group says nothing new"


def test_ranges_that_overlap_in_a_chain_are_not_merged() -> None:
    separated = np.zeros((4, 4), bool)
    separated[0, 2] = separated[0, 3] = separated[1, 3] = True
    groups = tie_groups(pairs(separated))
    assert groups == [[0, 1], [1, 2], [2, 3]]
    assert letters(groups, 4) == ["a", "ab", "bc", "c"]


def test_all_equal_and_all_different() -> None:
    assert tie_groups(pairs(np.zeros((3, 3), bool))) == [[0, 1, 2]]
    assert tie_groups(pairs(np.ones((3, 3), bool))) == [[0], [1], [2]]
    assert tie_groups(pairs(np.zeros((1, 1), bool))) == [[0]]
    assert tie_groups(pairs(np.zeros((0, 0), bool))) == []


def test_from_scores() -> None:
    rng = np.random.default_rng(0)
    values = np.array([0.9, 0.8, 0.8, 0.1])[:, None] + np.array([1e-3, 0.02, 0.02, 1e-3])[:, None] * rng.normal(
        size=(4, 5)
    )
    assert tie_groups(separations(values, "max")) == [[0], [1, 2], [3]]
    assert tie_groups(separations(values[:, :1], "max")) == [[0, 1, 2, 3]], "one seed separates nothing"


def test_more_groups_than_letters() -> None:
    groups = [[index] for index in range(60)]
    names = letters(groups, 60)
    assert names[0] == "a"
    assert names[25:29] == ["z", "aa", "ab", "ac"]
    assert len(set(names)) == 60
    assert letters([[0, 1], *groups[1:]], 60)[1] == "a b"


def test_hundreds_of_methods_take_no_time_that_grows_exponentially() -> None:
    # pairs 2k, 2k + 1 that are separated and nothing else: 2 ** 60 maximal groups, of which a few cover all ties
    separated = np.zeros((120, 120), bool)
    separated[np.arange(0, 120, 2), np.arange(1, 120, 2)] = True
    groups = tie_groups(pairs(separated))
    assert 2 < len(groups) < 120
    assert all(len(group) == 60 for group in groups)


def test_a_pair_needs_the_families_of_both() -> None:
    one_sided = Pairs(
        better=np.zeros((2, 2), bool), worse=np.array([[False, True], [False, False]]), tested=np.ones((2, 2), bool)
    )
    assert not one_sided.separated.any()
    assert tie_groups(one_sided) == [[0, 1]]
    both = Pairs(better=one_sided.worse.T, worse=one_sided.worse, tested=one_sided.tested)
    assert both.separated.tolist() == [[False, True], [True, False]]
