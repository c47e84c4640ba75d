"""Frequent sets of computation trees of each class, as many as fit into a number of bytes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from kdbench.errors import UsageError
from kdbench.tracks.dataset_distillation.blocks.itemsets import TooManySets, closed_itemsets, frequent_itemsets
from kdbench.tracks.dataset_distillation.blocks.trees import Trees
from kdbench.tracks.dataset_distillation.distilled.trees import Pattern, TreeSet

LEAST = 4
"""Bytes that a pattern takes at least: class, frequency, count, tree."""


class Miner:
    """Mines the graphs of each class, as sets of trees, at any support; what was mined once is kept."""

    def __init__(
        self, hops: int, table: Trees, transactions: Sequence[Sequence[frozenset[int]]], *, closed: bool
    ) -> None:
        """``transactions[c]``: the set of trees of each graph of class c."""
        self.hops, self.table, self.transactions = hops, table, transactions
        self.find = closed_itemsets if closed else frequent_itemsets
        self._known: dict[tuple[int, int, int], dict[tuple[int, ...], int] | None] = {}

    def mined(self, label: int, support: int, most: int) -> Mapping[tuple[int, ...], int] | None:
        """Frequent sets of a class, None where there are more than ``most``."""
        key = label, support, most
        if key not in self._known:
            try:
                self._known[key] = self.find(self.transactions[label], support, most)
            except TooManySets:
                self._known[key] = None
        return self._known[key]

    def summary(self, supports: Sequence[int], budget: int) -> TreeSet | None:
        """The patterns of each class at its support; None where they take more than ``budget`` bytes."""
        patterns = []
        for label, support in enumerate(supports):
            found = self.mined(label, support, budget // LEAST)
            if found is None:
                return None
            patterns += [Pattern(label, trees, count) for trees, count in sorted(found.items())]
        made = TreeSet(self.hops, self.table, patterns, [len(graphs) for graphs in self.transactions])
        return made if len(made.encode()) <= budget else None

    def tuned(self, budget: int) -> tuple[TreeSet, list[int]]:
        """The least supports whose patterns fit into ``budget`` bytes, and these patterns; no network is asked.

        First the least share of its graphs, the same for every class; then, class after class, the least support that
        still fits. Raises ``UsageError`` where a class has no pattern of its own at the best supports.
        """
        counts = [len(graphs) for graphs in self.transactions]
        permille = _least(1, 1000, lambda share: self.summary(_supports(counts, share), budget) is not None)
        supports = _supports(counts, permille)
        for label in range(len(supports)):

            def fits(support: int, label: int = label) -> bool:
                return self.summary([*supports[:label], support, *supports[label + 1 :]], budget) is not None

            supports[label] = _least(1, supports[label], fits)
        found = self.summary(supports, budget)
        kept = {pattern.label for pattern in found.patterns} if found else set()
        empty = set(range(len(counts))) - kept
        if found is None or empty:
            raise UsageError(
                f"{budget} bytes hold no frequent trees of the classes {', '.join(map(str, sorted(empty)))}",
                hint="raise data.share, or use fewer hops",
            )
        return found, supports


def _supports(counts: Sequence[int], permille: int) -> list[int]:
    """Graphs of each class that are ``permille`` thousandths of it, at least 1."""
    return [max(1, -(-permille * count // 1000)) for count in counts]


def _least(low: int, high: int, fits: object) -> int:
    """The least value from ``low`` to ``high`` for which ``fits`` holds; ``high`` where it holds for none below."""
    assert callable(fits)
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if fits(middle) else (middle + 1, high)
    return low


def transactions_of(trees: Sequence[Sequence[int]], classes: Sequence[int], count: int) -> list[list[frozenset[int]]]:
    """Graphs as sets of tree numbers, by class."""
    found: list[list[frozenset[int]]] = [[] for _ in range(count)]
    for own, label in zip(trees, classes, strict=True):
        found[label].append(frozenset(own))
    return found
