"""Operations on short lists, as in ParallelBench: with one result, or with several that are equally likely."""

from __future__ import annotations

from itertools import permutations

import numpy as np

from kdbench.tracks.decoding.data.problems import Problem
from kdbench.tracks.dllm.data import vocabulary
from kdbench.tracks.dllm.kinds.base import Kind

SYMBOLS = vocabulary.ALPHABET[vocabulary.ITEMS :]
NONE = vocabulary.ALPHABET[vocabulary.QUERY]
"""Stands for an index or an item that the operation does not have."""
SINGLE = frozenset(("copy", "reverse", "sort", "replace_index", "insert_index", "remove_index"))


def order(items: str) -> str:
    """Items as they are sorted: in the order of the vocabulary."""
    return "".join(sorted(items, key=vocabulary.IDS.__getitem__))


def apply(operation: str, items: str, index: int, new: str) -> str:
    """The result of an operation; of those at random the one at ``index``. Indices count from 0.

    >>> apply("replace_random", "abc", 1, "d"), apply("insert_index", "abc", 3, "d")
    ('adc', 'abcd')
    """
    what = operation.split("_")[0]
    if what == "reverse":
        return items[::-1]
    if what == "sort":
        return order(items)
    if what == "replace":
        return items[:index] + new + items[index + 1 :]
    if what == "insert":
        return items[:index] + new + items[index:]
    if what == "remove":
        return items[:index] + items[index + 1 :]
    return items


def results(operation: str, items: str, new: str) -> set[str]:
    """All right results of an operation at random but ``shuffle``, whose are the permutations that are not the list.

    >>> sorted(results("remove_random", "abc", ""))
    ['ab', 'ac', 'bc']
    """
    places = range(len(items) + 1) if operation == "insert_random" else range(len(items))
    return {apply(operation, items, place, new) for place in places}


class Lists(Kind):
    """The prompt has the operation, an index, a new item, and the list; the response the list that comes of it."""

    single = SINGLE

    @property
    def names(self) -> tuple[str, ...]:  # type: ignore[override]
        return tuple(self.data.operations)

    def problem(self, rng: np.random.Generator) -> Problem:
        operation = self.names[rng.integers(len(self.names))]
        count = int(rng.integers(self.data.items[0], self.data.items[1] + 1))
        drawn = "".join(SYMBOLS[number] for number in rng.choice(len(SYMBOLS), count + 1, replace=False))
        items, new = drawn[:-1], drawn[-1]
        index = int(rng.integers(count + ("insert" in operation)))
        what = operation.split("_")[0]
        if what == "shuffle":
            response = items
            while response == items:
                response = "".join(items[place] for place in rng.permutation(count))
        else:
            response = apply(operation, items, index, new)
        shown = str(index) if operation.endswith("index") else NONE
        asked = new if what in ("replace", "insert") else NONE
        name = vocabulary.ALPHABET[vocabulary.OPS + self.names.index(operation)]
        return Problem(f"{name}{shown}{asked}{items}", response, response, operation)

    def outcomes(self, problem: Problem) -> list[str]:
        items, new = problem.prompt[3:], problem.prompt[2]
        if problem.level == "shuffle":
            return [text for text in map("".join, permutations(items)) if text != items]
        return [problem.response] if problem.level in SINGLE else sorted(results(problem.level, items, new))

    def solves(self, problem: Problem, response: str) -> bool:
        """Operations at random are checked by what a result must be, not by the one that was drawn."""
        items, new = problem.prompt[3:], problem.prompt[2]
        if problem.level == "shuffle":
            return response != items and order(response) == order(items)
        if problem.level in SINGLE:
            return response == problem.answer
        return response in results(problem.level, items, new)
