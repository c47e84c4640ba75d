"""Sums: of two numbers of several digits, or a chain of steps that is written out."""

from __future__ import annotations

import numpy as np

from kdbench.tracks.decoding.data.problems import Problem
from kdbench.tracks.dllm.data import vocabulary
from kdbench.tracks.dllm.kinds.base import Kind


def worked(start: int, steps: list[tuple[str, int]], digits: int) -> str:
    """A chain of additions and subtractions, written out; results have so many ``digits``.

    >>> worked(17, [("+", 5), ("-", 8)], 2)
    '17+5=22;22-8=14;'
    """
    text, value = "", start
    for sign, number in steps:
        after = value + number if sign == "+" else value - number
        text += f"{value:0{digits}d}{sign}{number}={after:0{digits}d};"
        value = after
    return text


class Arith(Kind):
    """``add``: ``123+456``, answered by its sum; ``steps``: ``17+5-8``, answered step by step."""

    single = frozenset({"add", "steps"})

    @property
    def names(self) -> tuple[str, ...]:  # type: ignore[override]
        return tuple(self.data.sums)

    def problem(self, rng: np.random.Generator) -> Problem:
        kind = self.names[rng.integers(len(self.names))]
        name = vocabulary.ALPHABET[vocabulary.OPS + self.names.index(kind)]
        if kind == "add":
            digits = self.data.digits
            one, other = (int(number) for number in rng.integers(0, 10**digits, size=2))
            response = f"{one + other:0{digits + 1}d}"
            return Problem(f"{name}{one:0{digits}d}+{other:0{digits}d}", response, response, kind)
        most, digits = self.data.values, len(str(self.data.values))
        value = start = int(rng.integers(0, most + 1))
        steps: list[tuple[str, int]] = []
        for _ in range(int(rng.integers(self.data.steps[0], self.data.steps[1] + 1))):
            number = int(rng.integers(1, min(self.data.largest, max(value, most - value)) + 1))
            signs = "+" * (value + number <= most) + "-" * (value >= number)
            sign = signs[rng.integers(len(signs))]
            value = value + number if sign == "+" else value - number
            steps.append((sign, number))
        asked = f"{start:0{digits}d}" + "".join(f"{sign}{number}" for sign, number in steps)
        return Problem(name + asked, worked(start, steps, digits), f"{value:0{digits}d}", kind)

    def solves(self, problem: Problem, response: str) -> bool:
        """The sum, or the result of the last step: the steps before it may say what they like."""
        if problem.level == "add":
            return response == problem.answer
        return response.endswith(f"={problem.answer};")
