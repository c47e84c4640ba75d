"""Word problems of one to four steps, each with a rationale that has one operation per line.

Names, things and what is copied from the problem are easy to guess for a small model; the digits of a result are not.
"""

from __future__ import annotations

from functools import partial

import numpy as np

from kdbench.tracks.decoding.data import problems
from kdbench.tracks.decoding.data.problems import FINAL, Problem
from kdbench.tracks.decoding.data.specs import ArithData

NAMES = ("Ann", "Bob", "Eve", "Ida", "Jim", "Kay", "Leo", "Max", "Ned", "Sue", "Tom", "Zoe")
THINGS = ("pens", "cups", "eggs", "nuts", "keys", "maps", "toys", "hats", "figs", "jars")
GAINS = ("gets", "finds", "buys", "wins")
LOSSES = ("loses", "sells", "gives", "drops")
FACTORS = {2: "doubles", 3: "triples"}


def word_problem(rng: np.random.Generator, steps: tuple[int, int], largest: int) -> Problem:
    """One problem; every number in it and in its rationale is between 1 and ``largest``."""
    number = int(rng.integers(steps[0], steps[1] + 1))
    name, thing = NAMES[rng.integers(len(NAMES))], THINGS[rng.integers(len(THINGS))]
    value = int(rng.integers(2, largest // 2))
    sentences, lines = [f"{name} has {value} {thing}."], []
    for _ in range(number):
        factors = [factor for factor in FACTORS if value * factor <= largest]
        choices = ["gain"] * (value < largest) + ["loss"] * (value > 1) + ["factor"] * bool(factors)
        choice = choices[rng.integers(len(choices))]
        before = value
        if choice == "factor":
            factor = factors[rng.integers(len(factors))]
            value *= factor
            sentences.append(f"{name} {FACTORS[factor]} them.")
            lines.append(f"{before}*{factor}={value}")
        elif choice == "gain":
            more = int(rng.integers(1, largest - before + 1))
            value += more
            sentences.append(f"{name} {GAINS[rng.integers(len(GAINS))]} {more}.")
            lines.append(f"{before}+{more}={value}")
        else:
            less = int(rng.integers(1, before))
            value -= less
            sentences.append(f"{name} {LOSSES[rng.integers(len(LOSSES))]} {less}.")
            lines.append(f"{before}-{less}={value}")
    lines.append(f"{FINAL}{value}")
    return Problem(" ".join(sentences) + "\n", "\n".join(lines), str(value), f"{number} steps")


def make_arith(data: ArithData, split: str, count: int) -> list[Problem]:
    """``count`` word problems of a split (see :func:`problems.generate`)."""
    make = partial(word_problem, steps=data.steps, largest=data.largest)
    return problems.generate(make, split, count, data.seed)
