"""Problems with one right answer: what they have in common, and how their splits are kept apart."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from kdbench.errors import JobError

SPLITS = ("train", "val", "test")
FINAL = "The final answer is: "
"""What the last line of a rationale begins with."""
_NUMBER = re.compile(r"-?\d+")


@dataclass(frozen=True)
class Problem:
    """A problem, a response that solves it, and its answer."""

    prompt: str
    response: str
    answer: str
    level: str
    """What makes it easy or hard: steps of a word problem, operation on a list."""

    @property
    def text(self) -> str:
        return self.prompt + self.response

    @property
    def content(self) -> str:
        """What it is about: problems of the same content are in the same split."""
        return self.prompt

    def check(self, response: str) -> bool:
        """Whether ``response`` ends in the right answer."""
        return answer_in(response) == self.answer

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, row: dict[str, Any]) -> Problem:
        return cls(**row)


def answer_in(response: str) -> str | None:
    """The answer of a response: its last integer if it names a final answer, else its whole last line.

    >>> answer_in("3+4=7\\nThe final answer is: 7"), answer_in("[1 2]"), answer_in("")
    ('7', '[1 2]', None)
    """
    lines = response.strip().splitlines()
    if not lines:
        return None
    if FINAL.strip() in response:
        numbers = _NUMBER.findall(lines[-1])
        return numbers[-1] if numbers else None
    return lines[-1].strip()


def split_of(content: str) -> str:
    """Split that a problem belongs to, from its content alone: 80/10/10 %, none in two splits."""
    bucket = hashlib.sha256(content.encode()).digest()[0] % 10
    return "val" if bucket == 8 else "test" if bucket == 9 else "train"


def generate(make: Callable[[np.random.Generator], Problem], split: str, count: int, seed: int) -> list[Problem]:
    """``count`` problems of a split; training ones may come twice, the others are distinct.

    Raises ``JobError`` where ``make`` has too few to offer.
    """
    rng = np.random.default_rng([seed, SPLITS.index(split), 0xDEC])
    problems: list[Problem] = []
    known: set[str] = set()
    for _ in range(200 * count + 1000):
        problem = make(rng)
        if split_of(problem.content) != split or (split != "train" and problem.content in known):
            continue
        known.add(problem.content)
        problems.append(problem)
        if len(problems) == count:
            return problems
    raise JobError(f"there are only {len(problems)} different {split} problems of this kind, not {count}")
