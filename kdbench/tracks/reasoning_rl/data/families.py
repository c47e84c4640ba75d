"""Families of problems: ``FAMILIES[name](rng, level)`` makes one, with the steps that lead to its answer.

===========  ==========================================================================  =================
family       problem                                                                     level
===========  ==========================================================================  =================
addcarry     sum of two numbers, digits from the least significant on, with carries      digits
modchain     chain of assignments modulo 10 with + and \\*                                assignments
sortrev      a list sorted, reversed, or its k-th smallest; one insertion a step         length - 2
hops         the shortest path in a graph, by expanding frontiers                        edges of the path
word         a short story of buying, giving, doubling and sharing                       operations
rules        an answer that meets several constraints (rubrics)                          constraints
prog         a stack program for a formula, checked by running it on hidden inputs       operations
===========  ==========================================================================  =================
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from kdbench.tracks.reasoning_rl.data.problems import Maker, Problem
from kdbench.tracks.reasoning_rl.data.programs import LARGEST, OPERATIONS, run

NAMES = "abcdefghijklmnopqrstuvwxyz"
"""Names of variables, nodes and persons."""


def digits(value: int) -> str:
    """A number as words, one a digit, the most significant first."""
    return " ".join(str(value))


def addcarry(rng: np.random.Generator, level: int) -> Problem:
    """``add 2 3 + 9 8``, least significant digit first; a step is ``x y carry = digit carry``."""
    a, b = (rng.integers(0, 10, level).tolist() for _ in range(2))
    carry, written, steps = 0, [], []
    for x, y in zip(a, b, strict=True):
        total = x + y + carry
        steps.append(f"{x} {y} {carry} = {total % 10} {total // 10}")
        carry = total // 10
        written.append(total % 10)
    words = [" ".join(map(str, number)) for number in (a, b)]
    skills = ("add", "carry") if any(step.endswith("1") for step in steps) else ("add",)
    answer = " ".join(map(str, [*written, carry]))
    return Problem(
        "addcarry", level, f"add {words[0]} + {words[1]}", tuple(steps), answer, "+".join(sorted(words)), skills
    )


def modchain(rng: np.random.Generator, level: int) -> Problem:
    """``chain a = 3 ; b = a + 4 ; ? b`` modulo 10; a step resolves one variable: ``b = 3 + 4 = 7``."""
    names = [NAMES[i] for i in rng.permutation(26)[:level]]
    values = [int(rng.integers(10))]
    told, steps, canonical = [f"{names[0]} = {values[0]}"], [f"{names[0]} = {values[0]}"], [str(values[0])]
    skills = set()
    for i in range(1, level):
        symbol = "+" if rng.random() < 0.5 else "*"
        number = int(rng.integers(1, 10))
        value = (values[-1] + number if symbol == "+" else values[-1] * number) % 10
        told.append(f"{names[i]} = {names[i - 1]} {symbol} {number}")
        steps.append(f"{names[i]} = {values[-1]} {symbol} {number} = {value}")
        canonical.append(f"{symbol}{number}")
        skills.add("add" if symbol == "+" else "multiply")
        values.append(value)
    prompt = f"chain {' ; '.join(told)} ; ? {names[-1]}"
    return Problem("modchain", level, prompt, tuple(steps), str(values[-1]), "".join(canonical), tuple(sorted(skills)))


def sortrev(rng: np.random.Generator, level: int) -> Problem:
    """``sort``, ``rev`` or ``kth k`` of ``level`` + 2 different digits; a step is the list after one insertion."""
    numbers = rng.permutation(10)[: level + 2].tolist()
    task = ("sort", "rev", "kth")[int(rng.integers(3))]
    kept: list[int] = []
    steps = []
    for number in numbers:
        kept = [number, *kept] if task == "rev" else sorted([*kept, number])
        steps.append(" ".join(map(str, kept)))
    words = " ".join(map(str, numbers))
    if task != "kth":
        return Problem("sortrev", level, f"{task} {words}", tuple(steps), steps[-1], f"{task} {words}", (task,))
    place = int(rng.integers(1, level + 3))
    prompt = f"kth {place} : {words}"
    return Problem("sortrev", level, prompt, tuple(steps), str(kept[place - 1]), prompt, ("sort", "kth"))


def hops(rng: np.random.Generator, level: int) -> Problem:
    """``path a b , b c , ... ? a c``: the one shortest path; a step is the next frontier, the last one the goal."""
    while True:
        count = int(rng.integers(max(5, level + 2), 9))
        nodes = [NAMES[i] for i in rng.permutation(26)[:count]]
        edges = {(i, i + 1) for i in range(level)}  # the path itself, then the other nodes hang somewhere
        edges |= {(int(rng.integers(i)), i) for i in range(level + 1, count)}
        frontiers, paths = _expand(edges, level)
        if len(frontiers) == level + 1 and paths == 1:
            break
    order = rng.permutation(len(edges))
    listed = [sorted(edges)[i] for i in order]
    told = " , ".join(f"{nodes[i]} {nodes[j]}" for i, j in listed)
    steps = tuple(" ".join(sorted(nodes[i] for i in frontier)) for frontier in frontiers)
    answer = " ".join(nodes[: level + 1])
    return Problem("hops", level, f"path {told} ? {nodes[0]} {nodes[level]}", steps, answer, str(listed), ("graph",))


def _expand(edges: set[tuple[int, int]], goal: int) -> tuple[list[list[int]], int]:
    """Frontiers from node 0 to the one that has ``goal``, and how many shortest paths lead there."""
    ways = {0: 1}
    frontiers = [[0]]
    while goal not in ways:
        reached: dict[int, int] = {}
        for i, j in edges | {(j, i) for i, j in edges}:
            if i in frontiers[-1] and j not in ways:
                reached[j] = reached.get(j, 0) + ways[i]
        ways |= reached
        frontiers.append(sorted(reached))
    frontiers[-1] = [goal]
    return frontiers, ways[goal]


def word(rng: np.random.Generator, level: int) -> Problem:
    """``a has 1 2 ; buys 4 ; doubles ; ? a``; a step is one operation: ``1 2 + 4 = 1 6``."""
    name, value = NAMES[int(rng.integers(26))], int(rng.integers(2, 13))
    told, steps, skills = [f"{name} has {digits(value)}"], [], set()
    for _ in range(level):
        choices = ["buys"] + ["gives"] * (value > 2) + ["doubles"] * (value < 40) + ["shares"] * (value % 2 == 0)
        choice = choices[int(rng.integers(len(choices)))]
        if choice in ("doubles", "shares"):
            number, symbol = 2, "*" if choice == "doubles" else "/"
            told.append(choice)
        else:
            number, symbol = int(rng.integers(1, min(10, value) if choice == "gives" else 10)), "+-"[choice == "gives"]
            told.append(f"{choice} {number}")
        result = {"+": value + number, "-": value - number, "*": value * 2, "/": value // 2}[symbol]
        steps.append(f"{digits(value)} {symbol} {number} = {digits(result)}")
        skills.add(choice)
        value = result
    prompt = f"{' ; '.join(told)} ; ? {name}"
    return Problem("word", level, prompt, tuple(steps), digits(value), prompt[1:-1], tuple(sorted(skills)))


def rules(rng: np.random.Generator, level: int) -> Problem:
    """``rules first b ; last c ; has d ; least 4``: an answer of letters that meets all of them (at most 4)."""
    letters = [NAMES[i] for i in rng.permutation(26)[:3]]
    length = int(rng.integers(4, 7))
    every = [f"first {letters[0]}", f"last {letters[1]}", f"has {letters[2]}", f"least {length}"]
    chosen = [every[i] for i in sorted(rng.permutation(4)[: min(level, 4)].tolist())]
    size = length if chosen[-1].startswith("least") else 3
    answer = [letters[0], *[letters[2]] * (size - 2), letters[1]]
    return Problem(
        "rules", level, f"rules {' ; '.join(chosen)}", tuple(chosen), " ".join(answer), str(chosen), ("rules",)
    )


def prog(rng: np.random.Generator, level: int) -> Problem:
    """``prog x + 3 ; * y``: a stack program that computes it, such as ``push x push 3 add push y mul``."""
    told, program, steps = ["x"], ["push", "x"], ["push x"]
    for _ in range(level):
        symbol = ("+", "*", "mod")[int(rng.integers(3))]
        term = str(int(rng.integers(2, 10))) if symbol == "mod" or rng.random() < 0.5 else "y"
        told.append(f"{symbol} {term}")
        part = ["push", term, OPERATIONS[symbol]]
        steps.append(" ".join(part))
        program += part
    cases = []
    for _ in range(4):
        x, y = (int(value) for value in rng.integers(1, LARGEST, 2))
        result = run(program, x, y)
        assert result is not None, "a program that is made is valid"
        cases.append((x, y, result))
    prompt = f"prog {' ; '.join(told)}"
    return Problem("prog", level, prompt, tuple(steps), " ".join(program), prompt, ("program",), tuple(cases))


FAMILIES: Mapping[str, Maker] = {
    "addcarry": addcarry,
    "modchain": modchain,
    "sortrev": sortrev,
    "hops": hops,
    "word": word,
    "rules": rules,
    "prog": prog,
}
