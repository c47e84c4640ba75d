"""Frequent sets of items: FP-growth (Han, Pei and Yin, SIGMOD 2000).

Transactions are put into a prefix tree, frequent items first, so that common prefixes share nodes. The sets that end in
an item are found in the tree of the prefixes that lead to it, from the least frequent item on.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping

from kdbench.errors import KdbenchError

Weighted = Iterable[tuple[tuple[int, ...], int]]
"""Transactions and how often each occurs."""


class TooManySets(KdbenchError):
    """There are more frequent sets than were asked for."""


class _Node:
    __slots__ = ("children", "count", "item", "parent")

    def __init__(self, item: int, parent: _Node | None) -> None:
        self.item, self.parent, self.count = item, parent, 0
        self.children: dict[int, _Node] = {}

    def path(self) -> tuple[int, ...]:
        """Items from the root to this node, its own left out."""
        items = []
        node = self.parent
        while node is not None and node.parent is not None:
            items.append(node.item)
            node = node.parent
        return tuple(reversed(items))


def _grow(transactions: Weighted, support: int) -> tuple[list[tuple[int, int]], Mapping[int, list[_Node]]]:
    """Frequent items with their counts, least frequent first, and the nodes of each in the prefix tree."""
    weighted = list(transactions)
    counts: Counter[int] = Counter()
    for items, times in weighted:
        for item in items:
            counts[item] += times
    kept = sorted(((n, item) for item, n in counts.items() if n >= support), key=lambda pair: (-pair[0], pair[1]))
    rank = {item: place for place, (_, item) in enumerate(kept)}
    root, nodes = _Node(-1, None), defaultdict[int, list[_Node]](list)
    for items, times in weighted:
        node = root
        for item in sorted((item for item in items if item in rank), key=rank.__getitem__):
            if item not in node.children:
                node.children[item] = _Node(item, node)
                nodes[item].append(node.children[item])
            node = node.children[item]
            node.count += times
    return [(item, n) for n, item in reversed(kept)], nodes


def frequent_itemsets(
    transactions: Iterable[Iterable[int]], support: int, most: int | None = None
) -> dict[tuple[int, ...], int]:
    """All sets of items (sorted) that at least ``support`` transactions contain, with the number of these.

    Items that a transaction has several times count once. Raises ``TooManySets`` as soon as there are more than
    ``most``, and ``ValueError`` for a support below 1.
    """
    if support < 1:
        raise ValueError(f"support counts transactions, at least 1, not {support}")
    found: dict[tuple[int, ...], int] = {}

    def mine(weighted: Weighted, suffix: tuple[int, ...]) -> None:
        items, nodes = _grow(weighted, support)
        for item, count in items:
            found[tuple(sorted((item, *suffix)))] = count
            if most is not None and len(found) > most:
                raise TooManySets(f"more than {most} sets occur in {support} transactions or more")
            mine([(node.path(), node.count) for node in nodes[item]], (item, *suffix))

    mine([(tuple(set(items)), 1) for items in transactions], ())
    return found


def closed_itemsets(
    transactions: Iterable[Iterable[int]], support: int, most: int | None = None
) -> dict[tuple[int, ...], int]:
    """Frequent sets that no larger set contains with the same count; from them all others and their counts follow.

    Items that occur whenever the suffix does are joined to it at once, and a set that is part of one with the same
    count is left with all that grows from it (CLOSET: Pei, Han and Mao, DMKD 2000). Arguments and errors as
    :func:`frequent_itemsets`.
    """
    if support < 1:
        raise ValueError(f"support counts transactions, at least 1, not {support}")
    found: dict[int, list[frozenset[int]]] = defaultdict(list)
    total = 0

    def mine(weighted: Weighted, suffix: frozenset[int]) -> None:
        nonlocal total
        items, nodes = _grow(weighted, support)
        for item, count in items:
            below = [(node.path(), node.count) for node in nodes[item]]
            within: Counter[int] = Counter()
            for path, times in below:
                for other in path:
                    within[other] += times
            always = frozenset(other for other, n in within.items() if n == count)
            closed = suffix | {item} | always
            if any(closed <= larger for larger in found[count]):
                continue
            found[count].append(closed)
            total += 1
            if most is not None and total > most:
                raise TooManySets(f"more than {most} closed sets occur in {support} transactions or more")
            mine([(tuple(other for other in path if other not in always), times) for path, times in below], closed)

    mine([(tuple(set(items)), 1) for items in transactions], frozenset())
    return {tuple(sorted(items)): count for count, sets in found.items() for items in sets}
