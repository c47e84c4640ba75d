"""Problems whose answer can be checked, and how they are drawn for a split without repeating one of another split."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from kdbench.errors import JobError

SEPARATOR, ANSWER = ";", "ans"
"""The word between two steps, and the one that the answer follows."""
SHARES = (("train", 70), ("val", 15), ("test", 15))
"""Per cent of the canonical keys of each family that belong to a split."""
TRIES = 4000
"""Draws without a new problem of the split after which a family counts as exhausted."""


@dataclass(frozen=True)
class Problem:
    """One problem with its solution; all texts are words with spaces between them."""

    family: str
    level: int
    """Difficulty: digits, depth of a chain, length of a list or path, operations."""
    prompt: str
    steps: tuple[str, ...]
    """The worked solution, one step each."""
    answer: str
    key: str
    """The same for problems that differ in names alone: what splits are told apart by."""
    skills: tuple[str, ...] = ()
    cases: tuple[tuple[int, ...], ...] = ()
    """Hidden inputs of a program, each with its output last; empty for problems with one right answer."""
    index: int = -1
    """Row in its split."""

    @property
    def solution(self) -> str:
        """The worked solution and the answer, as a response says them."""
        return f" {SEPARATOR} ".join((*self.steps, f"{ANSWER} {self.answer}"))

    @property
    def response(self) -> str:
        return self.solution

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, row: dict[str, Any]) -> Problem:
        lists = {"steps": tuple(row["steps"]), "skills": tuple(row["skills"])}
        return cls(**{**row, **lists, "cases": tuple(tuple(case) for case in row["cases"])})


Maker = Callable[[np.random.Generator, int], Problem]


def split_of(family: str, key: str) -> str:
    """The split that a canonical key belongs to: by a hash, whatever is drawn in which order."""
    place = int.from_bytes(hashlib.sha256(f"{family}\x1f{key}".encode()).digest()[:4], "big") % 100
    for name, share in SHARES:
        if place < share:
            return name
        place -= share
    raise AssertionError("shares are per cents")


def draw(
    makers: Sequence[Maker],
    levels: tuple[int, int],
    split: str,
    count: int,
    rng: np.random.Generator,
    *,
    distinct: bool = False,
) -> list[Problem]:
    """``count`` problems of a split, the families in turn and the levels at random.

    ``distinct``: no problem twice. Raises ``JobError`` where a family has not so many.
    """
    low, high = levels
    found: list[Problem] = []
    seen: set[tuple[str, str]] = set()
    for i in range(count):
        maker = makers[i % len(makers)]
        for _ in range(TRIES):
            problem = maker(rng, int(rng.integers(low, high + 1)))
            name = (problem.family, problem.key)
            if split_of(*name) == split and not (distinct and name in seen):
                break
        else:
            raise JobError(f"there are no {count} different problems of the split {split!r} at levels {low} to {high}")
        seen.add(name)
        found.append(replace(problem, index=i))
    return found
