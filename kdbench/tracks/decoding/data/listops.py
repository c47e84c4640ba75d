"""Operations on short lists of numbers: copy, reverse, sort, remove and insert by position."""

from __future__ import annotations

from functools import partial

import numpy as np

from kdbench.tracks.decoding.data import problems
from kdbench.tracks.decoding.data.problems import Problem
from kdbench.tracks.decoding.data.specs import ListOpsData

OPERATIONS = ("copy", "reverse", "sort", "remove", "insert")


def show(numbers: list[int]) -> str:
    """A list as problems write it.

    >>> show([3, 1])
    '[3 1]'
    """
    return f"[{' '.join(map(str, numbers))}]"


def list_problem(rng: np.random.Generator, items: tuple[int, int], largest: int) -> Problem:
    """One problem; positions count from 0."""
    operation = OPERATIONS[rng.integers(len(OPERATIONS))]
    numbers = rng.integers(0, largest + 1, size=int(rng.integers(items[0], items[1] + 1))).tolist()
    head, result = operation, list(numbers)
    if operation == "reverse":
        result.reverse()
    elif operation == "sort":
        result.sort()
    elif operation == "remove":
        place = int(rng.integers(len(numbers)))
        head = f"remove at {place}"
        del result[place]
    elif operation == "insert":
        place, number = int(rng.integers(len(numbers) + 1)), int(rng.integers(0, largest + 1))
        head = f"insert {number} at {place}"
        result.insert(place, number)
    return Problem(f"{head}: {show(numbers)}\n", show(result), show(result), operation)


def make_listops(data: ListOpsData, split: str, count: int) -> list[Problem]:
    """``count`` list problems of a split (see :func:`problems.generate`)."""
    return problems.generate(partial(list_problem, items=data.items, largest=data.largest), split, count, data.seed)
