"""Tie groups: which methods of a board share a letter because no test separates them."""

from __future__ import annotations

from collections.abc import Sequence
from string import ascii_lowercase

import numpy as np

from kdbench.leaderboard.statistics import Pairs


def tie_groups(pairs: Pairs) -> list[list[int]]:
    """Groups of methods that no test separates, as a compact letter display has them (Piepho 2004).

    Two methods share a group exactly where they are not separated (:attr:`Pairs.separated`), so that groups overlap:
    a ~ b and b ~ c say nothing of a and c. The groups are maximal, in the order of their first members; every method
    is in one at least. They are found by covering the ties one by one with a maximal group that has many new ones
    (Gramm et al. 2007), which takes polynomial time, where there may be exponentially many maximal groups; a group
    whose ties others cover is left out. Methods with failed jobs rank behind all others whatever the tests say:
    leave them out of ``pairs``. A board of twenty methods has a few groups; one of hundreds, each with its own spread,
    has hundreds, and is better read by its ranges of ranks.
    """
    tied = ~pairs.separated
    np.fill_diagonal(tied, True)
    covered = np.zeros_like(tied)
    groups: list[list[int]] = []
    for first, second in np.argwhere(np.triu(tied)):
        if covered[first, second] or (first == second and tied[first].sum() > 1):
            continue
        members = [int(first)] if first == second else [int(first), int(second)]
        candidates = np.logical_and.reduce(tied[members])
        candidates[members] = False
        news = (~covered[members]).sum(axis=0)
        while candidates.any():  # whoever brings most ties that no group has yet, the first in order among equals
            found = int(np.argmax(np.where(candidates, news, -1)))
            members.append(found)
            candidates &= tied[found]
            candidates[found] = False
            news += ~covered[found]
        members.sort()
        groups.append(members)
        covered[np.ix_(members, members)] = True
    return sorted(_needed(groups, len(tied)))


def _needed(groups: list[list[int]], m: int) -> list[list[int]]:
    """The groups without those whose every tie is in another group."""
    times = np.zeros((m, m), dtype=np.int64)
    for group in groups:
        times[np.ix_(group, group)] += 1
    kept = []
    for group in sorted(groups, key=len):  # small ones are the first that others cover
        inside = np.ix_(group, group)
        if (times[inside] > 1).all():
            times[inside] -= 1
        else:
            kept.append(group)
    return kept


def letters(groups: Sequence[Sequence[int]], methods: int) -> list[str]:
    """The letters of each of ``methods`` methods: a, b, ... by group of :func:`tie_groups`, then aa, ab, ..."""
    names = [_letter(index) for index in range(len(groups))]
    spaced = " " if len(groups) > len(ascii_lowercase) else ""
    return [
        spaced.join(name for name, group in zip(names, groups, strict=True) if index in group)
        for index in range(methods)
    ]


def _letter(index: int) -> str:
    name = ""
    while index >= 0:
        index, digit = divmod(index, len(ascii_lowercase))
        name, index = ascii_lowercase[digit] + name, index - 1
    return name
